-- worker, state, ttl_ms -> 1 | 0
local worker, state, ttl_ms = unpack(ARGV)
if redis.call('EXISTS', BURIED .. worker) == 1 then return 0 end
allow_when_full()
redis.call('SADD', WORKERS, worker)
redis.call('SET', WORKER .. worker, state, 'PX', ttl_ms)
return 1
