-- token, tier, entry, id, attempt, prefill_worker, decode_worker, decision, work, decided -> 1 | 0
local token, tier, entry, id, attempt, worker, decode_worker, decision, work, decided = unpack(ARGV)
if redis.call('GET', EPOCH) ~= token then return fenced() end
allow_when_full()
local record = load(id)
if not record or ended(record.state) or record.attempt ~= attempt then
  drop_entry(tier, entry)
  return 0
end
if record.state == 'running' then return record.holder == worker and 1 or 0 end
drop_entry(tier, record.entry)
if redis.call('EXISTS', BURIED .. worker) == 1 then
  enqueue(id, tier, record.arrival)
  return 0
end
redis.call('HSET', RECORD .. id, 'state', 'running', 'holder', worker, 'prefill_worker', worker,
  'decode_worker', decode_worker, 'decision', decision, 'work', work)
redis.call('SADD', INFLIGHT .. worker, id)
redis.call('XADD', PREFILL .. worker, '*', 'id', id, 'attempt', attempt)
tell_api(record.reply_to, 'decided', decided)
return 1
