-- id, tier, arrival, reply_to, request, bound -> 'accepted' | 'duplicate' | 'full'
local id, tier, arrival, reply_to, request, bound = unpack(ARGV)
if redis.call('EXISTS', RECORD .. id) == 1 then return 'duplicate' end
if redis.call('XLEN', REQUESTS .. tier) >= tonumber(bound) then return 'full' end
redis.call('HSET', RECORD .. id, 'state', 'queued', 'attempt', 1, 'deaths', 0, 'tier', tier, 'arrival', arrival,
  'reply_to', reply_to, 'request', request)
enqueue(id, tier, arrival)
return 'accepted'
