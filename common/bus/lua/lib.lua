-- Shared by all scripts, which are appended to this text. KEYS are those of common/bus/redis_client.py; the ones
-- that end in a colon are prefixes. A record's fields are listed in common/bus/redis_wire.py.
local RECORD, TOKENS, REQUESTS, PREFILL, DECODE, INFLIGHT = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local REPLIES, CONTROL, WORKER, BURIED, WORKERS, PROGRESS = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local ARRIVALS, LEADER, EPOCH, LED_BY, FINISHED, DEAD_LETTERS = KEYS[13], KEYS[14], KEYS[15], KEYS[16], KEYS[17], KEYS[18]
local BUSY = KEYS[19]

-- Redis refuses memory to a script only before its first write. A script that works accepted requests off starts
-- with a write that needs none, so that a full Redis refuses new requests but drains those that it has.
local function allow_when_full()
  redis.call('DEL', INFLIGHT)
end

local function fenced()
  return redis.error_reply('FENCED another planner leads')
end

local function now()
  local time = redis.call('TIME')
  return string.format('%d.%06d', time[1], time[2])
end

local function ended(state)
  return state ~= 'queued' and state ~= 'running'
end

-- Nil if the record is missing or unreadable.
local function load(id)
  local raw = redis.pcall('HMGET', RECORD .. id, 'state', 'attempt', 'holder', 'reply_to', 'tier', 'entry',
    'prefill_worker', 'decode_worker', 'arrival')
  if raw.err or not raw[1] then return nil end
  return {
    id = id, state = raw[1], attempt = raw[2], holder = raw[3], reply_to = raw[4] or '', tier = raw[5] or '',
    entry = raw[6] or '', prefill_worker = raw[7], decode_worker = raw[8], arrival = raw[9] or '0',
  }
end

local function generated(id)
  return redis.call('STRLEN', TOKENS .. id) / 4
end

local function tell_api(api, ...)
  if api == '' then return end
  redis.call('XADD', REPLIES .. api, '*', ...)
  redis.call('EXPIRE', REPLIES .. api, STREAM_TTL_S)
end

local function tell_process(name, ...)
  redis.call('XADD', CONTROL .. name, 'MAXLEN', '~', LOG_BOUND, '*', ...)
  redis.call('EXPIRE', CONTROL .. name, STREAM_TTL_S)
end

local function enqueue(id, tier, arrival)
  local entry = redis.call('XADD', REQUESTS .. tier, '*', 'id', id, 'arrival', arrival)
  redis.call('HSET', RECORD .. id, 'entry', entry)
  redis.call('XADD', ARRIVALS, 'MAXLEN', 1, '*', 'id', id)
end

local function drop_entry(tier, entry)
  redis.pcall('XACK', REQUESTS .. tier, PLANNERS, entry)
  redis.call('XDEL', REQUESTS .. tier, entry)
end

-- Back into its tier with a higher attempt, whoever had it.
local function put_back(record)
  local key = RECORD .. record.id
  if record.holder then redis.call('SREM', INFLIGHT .. record.holder, record.id) end
  redis.call('HSET', key, 'state', 'queued', 'attempt', record.attempt + 1)
  redis.call('HDEL', key, 'holder', 'work', 'prefill_worker', 'decode_worker')
  enqueue(record.id, record.tier, record.arrival)
end

local function settle(id, holder, state, end_blob)
  redis.call('HSET', RECORD .. id, 'state', state, 'end', end_blob)
  redis.call('HDEL', RECORD .. id, 'work')
  if holder then redis.call('SREM', INFLIGHT .. holder, id) end
  redis.call('ZADD', FINISHED, now(), id)
end

-- End a request from outside of its worker, and tell everyone who may have it.
local function close(record, state, end_blob, reason)
  local id = record.id
  if record.state == 'queued' then drop_entry(record.tier, record.entry) end
  settle(id, record.holder, state, end_blob)
  tell_api(record.reply_to, table.concat({'end', record.attempt, generated(id), id}, ':'), end_blob)
  local cancel = table.concat({'cancel', record.attempt, id}, ':')
  local told = {}
  for _, name in ipairs({record.holder or '', record.prefill_worker or '', record.decode_worker or ''}) do
    if name ~= '' and not told[name] and redis.call('EXISTS', BURIED .. name) == 0 then
      told[name] = true
      tell_process(name, cancel, reason)
    end
  end
  tell_process(ADMISSION, cancel, reason)
end

local function dead_letter(id, reason)
  redis.call('XADD', DEAD_LETTERS, 'MAXLEN', '~', LOG_BOUND, '*', 'id', id, 'reason', reason)
end

local function give_up(record, end_blob, reason)
  dead_letter(record.id, reason)
  close(record, 'failed', end_blob, reason)
end

-- What a claim needs, of entries that this planner has now. Entries that nobody can work on are dropped.
local function claims(tier, entries)
  local found = {}
  for _, entry in ipairs(entries) do
    local fields = entry and entry[2]
    local id = fields and fields[1] == 'id' and fields[2]
    local record = id and load(id)
    if not record then
      dead_letter(id or '', id and 'no_record' or 'corrupt_entry')
      drop_entry(tier, entry[1])
    elseif record.state ~= 'queued' or record.entry ~= entry[1] then
      drop_entry(tier, entry[1])
    else
      local rest = redis.call('HMGET', RECORD .. id, 'request', 'deferred_s', 'n:first_token_s')
      local tokens = redis.pcall('GET', TOKENS .. id)
      if type(tokens) == 'table' then tokens = 'corrupt' end
      found[#found + 1] =
        {entry[1], id, rest[1] or '', record.attempt or '', rest[2] or '', tokens or '', rest[3] or ''}
    end
  end
  return found
end
