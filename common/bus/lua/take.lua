-- worker, count, (stage, after, next)... -> {cursor, {id, work}...} for each stage
-- Work up to `after` has arrived at its worker and is forgotten; an answer that got lost is given again.
local worker, left, answer = ARGV[1], tonumber(ARGV[2]), {}
allow_when_full()
for at = 3, #ARGV, 3 do
  local stage, cursor, next_id = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local stream, taken = (stage == 'prefill' and PREFILL or DECODE) .. worker, {}
  redis.call('XTRIM', stream, 'MINID', next_id)
  while left > 0 do
    local entries = redis.call('XRANGE', stream, '(' .. cursor, '+', 'COUNT', left)
    if #entries == 0 then break end
    for _, entry in ipairs(entries) do
      cursor = entry[1]
      local id, attempt = entry[2][2], entry[2][4]
      local record = redis.call('HMGET', RECORD .. id, 'state', 'attempt', 'holder', 'work')
      if record[1] == 'running' and record[2] == attempt and record[3] == worker and record[4] then
        taken[#taken + 1] = {id, record[4]}
        left = left - 1
      end
    end
  end
  answer[#answer + 1] = {cursor, taken}
end
return answer
