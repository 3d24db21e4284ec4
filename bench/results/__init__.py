"""Raw results of benchmark commands as JSON files, and the pages and figures that are made from nothing but those."""
