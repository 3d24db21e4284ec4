-- worker, decode worker, id, attempt, work -> 1 | 0
local worker, target, id, attempt, work = unpack(ARGV)
local record = load(id)
if not record or record.state ~= 'running' or record.attempt ~= attempt then return 0 end
if record.holder ~= worker then
  return record.holder == target and record.prefill_worker == worker and 1 or 0
end
allow_when_full()
if redis.call('EXISTS', BURIED .. target) == 1 then
  put_back(record)
  return 0
end
redis.call('SREM', INFLIGHT .. worker, id)
redis.call('SADD', INFLIGHT .. target, id)
redis.call('HSET', RECORD .. id, 'holder', target, 'decode_worker', target, 'work', work)
redis.call('XADD', DECODE .. target, '*', 'id', id, 'attempt', attempt)
return 1
