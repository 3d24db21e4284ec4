-- older_than_s, count -> how many were forgotten
local old = redis.call('ZRANGEBYSCORE', FINISHED, '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(old) do
  redis.call('UNLINK', RECORD .. id, TOKENS .. id)
  redis.call('ZREM', FINISHED, id)
end
return #old
