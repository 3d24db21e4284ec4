-- stage, worker, after, next, count -> cursor, {id, work}...
-- Work up to `after` has arrived at its worker and is forgotten; an answer that got lost is given again.
local stage, worker, after, next_id, count = unpack(ARGV)
local stream = (stage == 'prefill' and PREFILL or DECODE) .. worker
local wanted, cursor, taken = tonumber(count), after, {}
if redis.call('EXISTS', stream) == 0 then return {cursor, taken} end
allow_when_full()
redis.call('XTRIM', stream, 'MINID', next_id)
while #taken < wanted do
  local entries = redis.call('XRANGE', stream, '(' .. cursor, '+', 'COUNT', wanted - #taken)
  if #entries == 0 then break end
  for _, entry in ipairs(entries) do
    cursor = entry[1]
    local id, attempt = entry[2][2], entry[2][4]
    local record = redis.call('HMGET', RECORD .. id, 'state', 'attempt', 'holder', 'work')
    if record[1] == 'running' and record[2] == attempt and record[3] == worker and record[4] then
      taken[#taken + 1] = {id, record[4]}
    end
  end
end
return {cursor, taken}
