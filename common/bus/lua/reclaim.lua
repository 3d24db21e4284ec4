-- tier, planner, after ('-' or '(' and an id), count, max_deliveries, end -> next after or '', claims
local tier, planner, after, count, max_deliveries, end_blob = unpack(ARGV)
if redis.call('GET', LED_BY) ~= planner then return fenced() end
local stream = REQUESTS .. tier
allow_when_full()
local pending = redis.pcall('XPENDING', stream, PLANNERS, after, '+', count)
if pending.err then
  if string.find(pending.err, 'NOGROUP', 1, true) then return {'', {}} end
  return pending
end
local kept, last = {}, ''
for _, item in ipairs(pending) do
  local id, consumer, deliveries = item[1], item[2], item[4]
  last = '(' .. id
  local entry
  if consumer == planner then
    entry = redis.call('XRANGE', stream, id, id)[1] -- no delivery: this planner had it already
  elseif deliveries < tonumber(max_deliveries) then
    entry = redis.call('XCLAIM', stream, PLANNERS, planner, 0, id)[1]
  else
    local found = redis.call('XRANGE', stream, id, id)[1]
    local record = found and found[2][1] == 'id' and load(found[2][2])
    if record and record.entry == id and not ended(record.state) then give_up(record, end_blob, 'poison') end
  end
  if entry then kept[#kept + 1] = entry else drop_entry(tier, id) end
end
if last == '' then
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, PLANNERS)) do
    local name, held = consumer[2], consumer[4]
    if name ~= planner and held == 0 then redis.call('XGROUP', 'DELCONSUMER', stream, PLANNERS, name) end
  end
end
return {last, claims(tier, kept)}
