-- tier, entry, id, end, reason: give up a claimed entry whose record can't be read
local tier, entry, id, end_blob, reason = unpack(ARGV)
allow_when_full()
local record = load(id)
if record and not ended(record.state) then
  give_up(record, end_blob, reason)
else
  dead_letter(id, reason)
end
drop_entry(tier, entry)
return 1
