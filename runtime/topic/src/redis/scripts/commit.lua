-- The one atomic commit: every check of DELIVERY, in its order, then every write.
-- Arguments: see commit.rs, which lays them out in this order.
local node = take()
fresh, drawn = take(), 0
FRAME_MESSAGES, FRAME_BYTES, FRAME_SPLIT = num(), num(), num()
local token, seq, id, base, ttl = take(), take(), take(), take(), num()
local dead_messages, dead_bytes = num(), num()
local too_large = take() == '1'
-- `foreign`: how often state was written by another partition than its key's, as the owner knew it when it took what it remembers for
-- whole; `abroad`: this commit does so too.
local foreign, abroad = take(), take() == '1'
local own_partitions = num()
local v = redis.call('HMGET', part, 'tok', 'seq', 'last', 'ce', 'ci', 'rn', 'rb', 'ord', 'lf')
if v[1] ~= token then
  if gone() then return {'GONE'} end
  if on('t') or not v[2] then return {'FENCED'} end
end
local last = v[3] or NONE
if last == id then return {'DONE', v[9] or '0'} end
if held() then
  -- Whoever waits is the owner still.
  redis.call('HSET', part, 'exp', int(now + ttl))
  return {'HELD_STILL'}
end
if on('b') and last ~= base then return {'STALE'} end
if on('s') and (v[2] or '0') ~= seq then return {'STALE'} end
local ce, ci = v[4] or '0', v[5] or '0'
local rn, rb = tonumber(v[6] or '0'), tonumber(v[7] or '0')
local rn_before, rb_before = rn, rb
local to_e, to_i
if take() == '1' then
  local from_e, from_i = take(), take()
  to_e, to_i = num(), num()
  local last_e, uid = num(), take()
  if on('c') and (from_e ~= ce or from_i ~= ci) then return {'STALE'} end
  local at_id = int(last_e + 1) .. '-0'
  local entry = redis.call('XRANGE', T .. ':in:' .. stage .. ':' .. p, at_id, at_id)[1]
  if not entry then return {'GONE_INPUT'} end
  local f = entry[2]
  if on('e') and f[2] ~= uid then return {'GONE_INPUT'} end
  local before, bytes_before, n, z, parts = struct.unpack('<I8I8I4I4I4', f[4])
  local behind = to_e == last_e + 1 and to_i == 0
  if not (behind or (to_e == last_e and to_i < n)) then return {'GONE_INPUT'} end
  local fe, fi = tonumber(from_e), tonumber(from_i)
  if to_e < fe or (to_e == fe and to_i <= fi) then return {'GONE_INPUT'} end
  if behind then
    rn, rb = before + n, bytes_before + z
  else
    rn, rb = before + to_i, bytes_before
    local left, i = to_i, 1
    while left > 0 do
      local skip, pn, pz = struct.unpack('<I4I4I4', f[4], 29 + (i - 1) * 12)
      if left >= pn then
        rb, left = rb + pz, left - pn
      else
        local sums = f[4 + i * 2]
        rb = rb + struct.unpack('<I4', sums, (skip + left - 1) * 4 + 1)
        if skip > 0 then rb = rb - struct.unpack('<I4', sums, (skip - 1) * 4 + 1) end
        left = 0
      end
      i = i + 1
    end
  end
end
local TM, TD = T .. ':tm:' .. stage .. ':' .. p, T .. ':td:' .. stage .. ':' .. p
local K, KL, KD = T .. ':k:' .. stage .. ':' .. p, T .. ':kl:' .. stage .. ':' .. p, T .. ':kd:' .. stage .. ':' .. p
local timers_gone = {}
for i = 1, num() do
  local member, uid = take(), take()
  local record = redis.call('HGET', TM, member)
  if on('i') and not (record and string.sub(record, 1, 16) == uid and struct.unpack('<I8', record, 17) <= now) then
    return {'GONE_INPUT'}
  end
  timers_gone[i] = member
end
-- The first parked entry of a lane: its place and record. A record: uid, due, bytes, body.
local function head(lane)
  local member = redis.call('ZRANGEBYLEX', KL, '[' .. lane, '(' .. lane .. '\255', 'LIMIT', 0, 1)[1]
  if not member then return end
  local ord = string.sub(member, -8)
  return ord, redis.call('HGET', K, ord), member
end
local retries = {}
for i = 1, num() do
  local r = {lane = take(), uid = take(), again = take() == '1'}
  if r.again then r.due, r.record = num(), take() end
  if on('r') then
    local ord, record = head(r.lane)
    if not (record and string.sub(record, 1, 16) == r.uid and struct.unpack('<I8', record, 17) <= now) then return {'GONE_INPUT'} end
  end
  retries[i] = r
end
local park = {}
for i = 1, num() do park[i] = {lane = take(), due = num(), record = take()} end
-- Destinations, each with the partitions that its messages may go to.
local own = load(stage, {tonumber(p)})
local outputs = {}
for i = 1, num() do
  local o = {stage = take(), born = num(), messages = num(), bytes = num(), partitions = num(), loose = take() == '1', parts = {}}
  local wanted, places = {}, take()
  if o.loose then
    for q = 0, o.partitions - 1 do wanted[q + 1] = q end
  else
    for q in string.gmatch(places, '%d+') do wanted[#wanted + 1] = tonumber(q) end
  end
  o.t = load(o.stage, wanted)
  for j = 1, num() do o.parts[j] = {place = take(), n = num(), bytes = num(), sums = take(), body = take()} end
  outputs[i] = o
end
local timers_set = {}
for i = 1, num() do
  local s = {member = take(), at = take()}
  if s.at ~= '' then s.record = take() end
  timers_set[i] = s
end
local state_at = at
-- A plan that names a removed stage is old.
for _, o in ipairs(outputs) do
  if is_removed(o.stage, o.born) then return {'STALE'} end
end
local wrong = {}
for _, o in ipairs(outputs) do
  if used(o.t, o.born, o.partitions) then
    wrong[#wrong + 1] = o.stage
    wrong[#wrong + 1] = int(o.t.partitions)
  end
end
if own.partitions ~= own_partitions then
  wrong[#wrong + 1] = stage
  wrong[#wrong + 1] = int(own.partitions)
end
if #wrong > 0 then return {'LAYOUT', wrong} end
-- Room, after all that only reads: a refusal is remembered, so that whoever frees room knows whom to ring.
local dead_at = num()
local dead_count = tonumber(ARGV[dead_at])
if on('m') then
  local stage_full, what
  for _, o in ipairs(outputs) do
    if full(o.t, o.messages, o.bytes, 100) then
      o.t.c[8], o.t.c[9] = o.messages, o.bytes
      o.t.dirty = true
      if not what then stage_full, what = o.stage, 'inbox' end
    end
  end
  if dead_count > 0 and dead_full(own, dead_messages, dead_bytes) then
    own.c[10], own.c[11] = dead_messages, dead_bytes
    own.dirty = true
    if not what then stage_full, what = stage, 'dead' end
  end
  if what then
    save()
    return {'FULL', stage_full, what}
  end
end
if too_large then return {'LARGE'} end
if foreign ~= '' and (redis.call('HGET', own.key, 'f') or '0') ~= foreign then return {'AGAIN'} end

-- All checks are behind; nothing below refuses.
local c, mine = own.c, own.p[tonumber(p)]
local look = #park + #retries > 0
own.dirty, mine.dirty = true, true
if to_e then
  if to_e > tonumber(ce) then redis.call('XTRIM', T .. ':in:' .. stage .. ':' .. p, 'MINID', int(to_e + 1) .. '-0') end
  local n = rn - rn_before
  c[1], c[2] = c[1] - n, c[2] - (rb - rb_before)
  mine[4] = mine[4] - n
  ce, ci = int(to_e), int(to_i)
end
local next_ord = tonumber(v[8] or '0')
local heads = {}
local new_k, new_kl, new_kd = {}, {}, {}
local function put_parked(lane, due, record)
  next_ord = next_ord + 1
  local ord = struct.pack('>I8', next_ord)
  if heads[lane] == nil then heads[lane] = head(lane) ~= nil end
  if not heads[lane] then
    heads[lane] = true
    new_kd[#new_kd + 1], new_kd[#new_kd + 2] = due, ord
  end
  new_k[#new_k + 1], new_k[#new_k + 2] = ord, record
  new_kl[#new_kl + 1], new_kl[#new_kl + 2] = 0, lane .. ord
  local bytes = struct.unpack('<I8', record, 25)
  c[3], c[4], mine[4], mine[5] = c[3] + 1, c[4] + bytes, mine[4] + 1, mine[5] + 1
end
for _, r in ipairs(retries) do
  local ord, record, member = head(r.lane)
  if ord then
    local bytes = struct.unpack('<I8', record, 25)
    if r.again and on('p') then
      redis.call('HSET', K, ord, r.record)
      redis.call('ZADD', KD, r.due, ord)
      c[4] = c[4] - bytes + struct.unpack('<I8', r.record, 25)
    else
      redis.call('HDEL', K, ord)
      redis.call('ZREM', KL, member)
      redis.call('ZREM', KD, ord)
      c[3], c[4], mine[4], mine[5] = c[3] - 1, c[4] - bytes, mine[4] - 1, mine[5] - 1
      if on('w') then
        local next_one, next_record = head(r.lane)
        if next_one then redis.call('ZADD', KD, struct.unpack('<I8', next_record, 17), next_one) end
      end
      if r.again then put_parked(r.lane, r.due, r.record) end
    end
  end
end
for _, k in ipairs(park) do put_parked(k.lane, k.due, k.record) end
many('HSET', K, new_k)
many('ZADD', KL, new_kl)
many('ZADD', KD, new_kd)
if #timers_gone + #timers_set > 0 then
  local hset, zadd = {}, {}
  for _, s in ipairs(timers_set) do
    timers_gone[#timers_gone + 1] = s.member
    if s.record then
      hset[#hset + 1], hset[#hset + 2] = s.member, s.record
      zadd[#zadd + 1], zadd[#zadd + 2] = s.at, s.member
    end
  end
  local removed_timers, i = 0, 1
  while i <= #timers_gone do
    removed_timers = removed_timers + redis.call('HDEL', TM, unpack(timers_gone, i, math.min(i + 3999, #timers_gone)))
    i = i + 4000
  end
  many('ZREM', TD, timers_gone)
  many('HSET', TM, hset)
  many('ZADD', TD, zadd)
  local change = #hset / 2 - removed_timers
  c[5], mine[6] = c[5] + change, mine[6] + change
  look = look or #hset > 0
end
at = state_at + 1
put_state(stage)
at = dead_at
for _, o in ipairs(outputs) do
  for _, q in ipairs(o.parts) do
    add(o.t, q.place == '' and loose(o.t, o.partitions) or tonumber(q.place), 0, q.n, q.bytes, q.sums, q.body)
  end
end
local rung = write_appends(node)
local letters, first = {}, 0
if dead_count > 0 then
  first = redis.call('HINCRBY', KEYS[1], 'letter', dead_count) - dead_count + 1
  for i = 0, dead_count - 1 do
    local body, request = take(), take()
    redis.call('XADD', T .. ':d:' .. stage, int(first + i) .. '-0', 'b', body)
    c[6], c[7] = c[6] + 1, c[7] + #body
    if request ~= '' then letters[request] = first + i end
  end
end
-- Replies: beside their idempotency key, and where the caller waits on another node, under the request for a while.
for _ = 1, num() do
  local request, letterless, keep, body = take(), take() == '1', num(), take()
  local letter = letterless and letters[request] or 0
  local place = redis.call('HGET', T .. ':dr', request)
  if place then
    local cut = string.find(place, '\0', 1, true)
    local subject, key = string.sub(place, 1, cut - 1), string.sub(place, cut + 1)
    local record = redis.call('HGET', T .. ':dd:' .. subject, key)
    if record and #record == 64 then
      redis.call('HSET', T .. ':dd:' .. subject, key, string.sub(record, 1, 56) .. struct.pack('<I8', letter) .. body)
      redis.call('HINCRBY', T .. ':dm', subject, #body)
    end
  end
  if keep > 0 then redis.call('SET', T .. ':rp:' .. request, struct.pack('<I8', letter) .. body, 'PX', int(keep), 'NX') end
end
redis.call('HSET', part, 'tok', token, 'exp', int(now + ttl), 'seq', int(tonumber(v[2] or '0') + 1), 'last', id, 'ce', ce, 'ci', ci,
  'rn', int(rn), 'rb', int(rb), 'un', 0, 'mu', '', 'mc', 0, 'ord', int(next_ord), 'lf', int(first))
-- When this partition needs an owner: now, at its next due time, or not at all.
local member = stage .. ':' .. p
if mine[4] > mine[5] then
  -- Its member stands at 0 since the append.
else
  local when
  for i, key in ipairs({KD, TD}) do
    if mine[4 + i] > 0 then
      local next_one = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
      if next_one and (not when or tonumber(next_one) < when) then when = tonumber(next_one) end
    end
  end
  if when then redis.call('ZADD', T .. ':ready', int(when), member) elseif to_e or look or #timers_gone > 0 or #retries > 0 then
    redis.call('ZREM', T .. ':ready', member)
  end
end
local room = frees(own)
if abroad then redis.call('HINCRBY', own.key, 'f', 1) end
save()
if room then redis.call('PUBLISH', T .. ':bell', node .. 'r' .. stage .. '\n') end
-- Whether anything is left for its owner: unread, parked, timed, or a seal to look at.
local left = mine[4] > 0 or mine[6] > 0 or own.sealed > 0
return {'OK', int(first), rung, room and 1 or 0, look and 1 or 0, left and 1 or 0}
