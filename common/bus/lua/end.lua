-- id, attempt or '', state, end, reason -> 1 | 0
local id, attempt, state, end_blob, reason = unpack(ARGV)
local record = load(id)
if not record or ended(record.state) or (attempt ~= '' and attempt ~= record.attempt) then return 0 end
allow_when_full()
close(record, state, end_blob, reason)
return 1
