-- token, worker, max_deaths, count, end -> how many are left, ids that were put back
local token, worker, max_deaths, count, end_blob = unpack(ARGV)
if redis.call('GET', EPOCH) ~= token then return fenced() end
allow_when_full()
redis.call('SREM', WORKERS, worker)
redis.call('SET', BURIED .. worker, 1, 'EX', BURIED_TTL_S)
redis.call('DEL', WORKER .. worker, CONTROL .. worker, PREFILL .. worker, DECODE .. worker)
local requeued = {}
for _, id in ipairs(redis.call('SPOP', INFLIGHT .. worker, count)) do
  local record = load(id)
  if record and record.state == 'running' and record.holder == worker then
    record.deaths = redis.call('HINCRBY', RECORD .. id, 'deaths', 1)
    if record.deaths >= tonumber(max_deaths) then
      give_up(record, end_blob, 'worker_died')
    else
      put_back(record)
      requeued[#requeued + 1] = id
    end
  end
end
return {redis.call('SCARD', INFLIGHT .. worker), requeued}
