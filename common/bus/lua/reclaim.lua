-- tier, planner, cursor, count, max_deliveries, end -> next cursor, claims
local tier, planner, cursor, count, max_deliveries, end_blob = unpack(ARGV)
if redis.call('GET', LED_BY) ~= planner then return fenced() end
local stream = REQUESTS .. tier
allow_when_full()
local reply = redis.pcall('XAUTOCLAIM', stream, PLANNERS, planner, 0, cursor, 'COUNT', count)
if reply.err then
  if string.find(reply.err, 'NOGROUP', 1, true) then return {'0-0', {}} end
  return reply
end
local kept = {}
for _, entry in ipairs(reply[2]) do
  local id = entry and entry[1]
  local pending = id and redis.call('XPENDING', stream, PLANNERS, id, id, 1)[1]
  if pending and pending[4] > tonumber(max_deliveries) then
    local request = entry[2] and entry[2][2]
    local record = request and load(request)
    if record and record.entry == id and not ended(record.state) then
      give_up(record, end_blob, 'poison')
    else
      drop_entry(tier, id)
    end
  elseif id and entry[2] then
    kept[#kept + 1] = entry
  elseif id then
    drop_entry(tier, id)
  end
end
if reply[1] == '0-0' then
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, PLANNERS)) do
    local name, pending = consumer[2], consumer[4]
    if name ~= planner and pending == 0 then redis.call('XGROUP', 'DELCONSUMER', stream, PLANNERS, name) end
  end
end
return {reply[1], claims(tier, kept)}
