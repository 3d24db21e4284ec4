"""Everything that turning bodies into requests, and tokens into text, depends on; the same online and offline."""

from dataclasses import dataclass

from api.facts import Facts, load_facts
from api.tokenizer import Tokenizer
from common.settings import Settings
from common.tiers import Tiers, load_tiers


@dataclass(frozen=True, slots=True)
class Context:
    """The model's tokenizer and facts, and the tiers."""

    tokenizer: Tokenizer
    facts: Facts
    tiers: Tiers


def load_context(settings: Settings) -> Context:
    """Reads files, for seconds; raises OSError or ValueError for a bad model, TiersError for bad tiers."""
    tiers = load_tiers(settings.tiers_file, settings.tpot_scale)
    tokenizer = Tokenizer.load(settings.model, settings.trust_remote_code)
    return Context(tokenizer, load_facts(settings, tokenizer), tiers)
