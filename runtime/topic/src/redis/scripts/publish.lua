-- Appends calls: each is taken or refused alone, each taken one is whole.
-- Arguments: node, fresh (12 random bytes), frame bounds, dedup bounds, then topics, then calls.
local node = take()
fresh, drawn = take(), 0
FRAME_MESSAGES, FRAME_BYTES, FRAME_SPLIT = num(), num(), num()
local percent, keys_max, reply_bytes_max, sessions_max, expired_max = num(), num(), num(), num(), num()
local m = redis.call('HMGET', KEYS[1], 'id', 'gone', 'aside')
if m[2] then return {'GONE'} end
if not m[1] then return {'NEW'} end
if aside(m[3]) then return {'ASIDE'} end
if held() then return {'HELD_STILL'} end
local specs, wrong = {}, {}
for i = 1, num() do
  local s = {stage = take(), born = num(), messages = num(), bytes = num(), partitions = num(), loose = take() == '1'}
  local parts = {}
  if s.loose then
    for p = 0, s.partitions - 1 do parts[#parts + 1] = p end
    at = at + 1
  else
    for p in string.gmatch(take(), '%d+') do parts[#parts + 1] = tonumber(p) end
  end
  s.t = load(s.stage, parts)
  s.removed = is_removed(s.stage, s.born)
  if not s.removed and used(s.t, s.born, s.partitions) then
    wrong[#wrong + 1] = s.stage
    wrong[#wrong + 1] = int(s.t.partitions)
  end
  specs[i] = s
end
if #wrong > 0 then return {'LAYOUT', wrong} end
local dedup = on('d')
local dirty_windows, known_now, sessions_now = {}, {}, {}
-- Idempotency keys: `dd:<subject>` key to (fingerprint, request, expiry, letter, reply); `dx:` by expiry; `dr` request to place; `dm` reply bytes.
local function forget(subject, key, record)
  redis.call('HDEL', T .. ':dd:' .. subject, key)
  redis.call('ZREM', T .. ':dx:' .. subject, key)
  local request = string.sub(record, 33, 48)
  if request ~= NONE then redis.call('HDEL', T .. ':dr', request) end
  if #record > 64 then redis.call('HINCRBY', T .. ':dm', subject, 64 - #record) end
end
local function collect(subject)
  if dirty_windows[subject] then return end
  dirty_windows[subject] = true
  local old = redis.call('ZRANGEBYSCORE', T .. ':dx:' .. subject, '-inf', int(now), 'LIMIT', 0, expired_max)
  for _, key in ipairs(old) do
    local record = redis.call('HGET', T .. ':dd:' .. subject, key)
    if record then forget(subject, key, record) end
  end
end
local results, writes, written = {}, {}, 0
local rooms, alarms = {}, {}
local function known(once)
  local place = once.subject .. '\0' .. once.key
  local twin = known_now[place]
  local record = twin and writes[twin][2] or redis.call('HGET', T .. ':dd:' .. once.subject, once.key)
  if record and struct.unpack('<I8', record, 49) <= now then
    if twin then
      -- Expired when it came, in this very script: as if it had never been.
      writes[twin] = false
      known_now[place] = nil
      known_now[once.subject] = known_now[once.subject] - 1
    else
      forget(once.subject, once.key, record)
    end
    record = nil
  end
  if record then
    if string.sub(record, 1, 32) ~= once.fingerprint then return {'R'} end
    local letter = struct.unpack('<I8', record, 57)
    return {'D', string.sub(record, 33, 48), int(letter), string.sub(record, 65)}
  end
  local more = known_now[once.subject] or 0
  local bytes = tonumber(redis.call('HGET', T .. ':dm', once.subject) or '0')
  if redis.call('HLEN', T .. ':dd:' .. once.subject) + more >= keys_max or bytes >= reply_bytes_max then return {'T', once.subject} end
end
local function call()
  local once = {kind = take()}
  if once.kind == 'k' then
    once.subject, once.key, once.fingerprint, once.request, once.expires = take(), take(), take(), take(), num()
  elseif once.kind == 's' then
    once.id, once.first, once.again_max, once.expires = take(), num(), num(), num()
  elseif once.kind == 'l' then
    once.letter, once.timer = int(num()), take() == '1'
    if once.timer then once.place, once.member, once.due, once.record, once.commit = num(), take(), num(), take(), take() end
  end
  local longest, targets = num(), {}
  for i = 1, num() do
    local target = {spec = specs[num()], count = num(), parts = {}}
    for j = 1, num() do
      target.parts[j] = {place = take(), n = num(), bytes = num(), sums = take(), positions = take(), body = take()}
    end
    targets[i] = target
  end
  local skip, mark = 0, 0
  if dedup and once.kind == 'k' then
    collect(once.subject)
    local answer = known(once)
    if answer then return answer end
  elseif dedup and once.kind == 's' then
    local high = 0
    local stored = sessions_now[once.id] or redis.call('HGET', T .. ':se', once.id)
    if stored then
      local h, expires = struct.unpack('<I8I8', stored)
      if expires > now then high = h end
    end
    if once.first == 0 or once.first > high + 1 then return {'G', int(high)} end
    skip = math.min(high + 1 - once.first, longest)
    if skip > once.again_max then return {'H', int(high)} end
    mark = math.max(high, once.first + longest - 1)
  end
  local letter, of
  if once.kind == 'l' then
    of = targets[1].spec
    if of.removed then return {'X', of.stage} end
    letter = redis.call('XRANGE', T .. ':d:' .. of.stage, once.letter .. '-0', once.letter .. '-0')[1]
    if on('x') and not letter then return {'L'} end
    if once.timer then
      if of.t.sealed > 0 then return {'B', of.stage} end
      if redis.call('HEXISTS', T .. ':tm:' .. of.stage .. ':' .. once.place, once.member) == 1 then return {'W'} end
    end
  end
  if skip < longest then
    for _, target in ipairs(targets) do
      local s = target.spec
      if target.count > 0 then
        if s.removed then return {'X', s.stage} end
        local n, bytes = waiting(s.t)
        if (s.t.c[1] + s.t.c[3] + n) * 100 >= s.messages * percent or (s.t.c[2] + s.t.c[4] + bytes) * 100 >= s.bytes * percent then
          s.t.c[8], s.t.c[9] = s.messages, s.bytes
          s.t.dirty = true
          return {'F', s.stage}
        end
      end
    end
    for _, target in ipairs(targets) do
      local s = target.spec
      for _, part in ipairs(target.parts) do
        local p = part.place == '' and loose(s.t, s.partitions) or tonumber(part.place)
        local drop, n, bytes = 0, part.n, part.bytes
        if skip > 0 then
          while drop < n and struct.unpack('<I4', part.positions, drop * 4 + 1) < skip do drop = drop + 1 end
          if drop > 0 then
            n = n - drop
            bytes = n > 0 and bytes - struct.unpack('<I4', part.sums, (drop - 1) * 4 + 1) or 0
          end
        end
        if n > 0 then add(s.t, p, drop, n, bytes, part.sums, part.body) end
      end
    end
  end
  if letter then
    local c = of.t.c
    redis.call('XDEL', T .. ':d:' .. of.stage, once.letter .. '-0')
    c[6], c[7], of.t.dirty = c[6] - 1, c[7] - #letter[2][2], true
    if frees(of.t) then
      rooms[#rooms + 1] = of.stage
      redis.call('PUBLISH', T .. ':bell', node .. 'r' .. of.stage .. '\n')
    end
  end
  if once.timer then
    local place = of.stage .. ':' .. once.place
    local v = of.t.p[once.place]
    redis.call('HSET', T .. ':tm:' .. place, once.member, once.record)
    redis.call('ZADD', T .. ':td:' .. place, once.due, once.member)
    -- Its owner drops what it knows.
    redis.call('HSET', T .. ':p:' .. place, 'last', once.commit)
    of.t.c[5], v[6], of.t.dirty, v.dirty = of.t.c[5] + 1, v[6] + 1, true, true
    set_ready(of.t, once.place)
    alarms[#alarms + 1] = place
    redis.call('PUBLISH', T .. ':bell', node .. 'b' .. place .. '\n')
  end
  if dedup and once.kind == 'k' then
    local record = once.fingerprint .. once.request .. struct.pack('<I8I8', once.expires, 0)
    written = written + 1
    known_now[once.subject .. '\0' .. once.key] = written
    known_now[once.subject] = (known_now[once.subject] or 0) + 1
    writes[written] = {once, record}
  elseif dedup and once.kind == 's' then
    local record = struct.pack('<I8I8', mark, once.expires)
    sessions_now[once.id] = record
    written = written + 1
    writes[written] = {once, record}
  end
  return {'A', int(skip)}
end
local calls = num()
for i = 1, calls do results[i] = call() end
for i = 1, written do
  local once, record = writes[i] and writes[i][1], writes[i] and writes[i][2]
  if not once then
    -- Replaced above.
  elseif once.kind == 'k' then
    redis.call('HSET', T .. ':dd:' .. once.subject, once.key, record)
    redis.call('ZADD', T .. ':dx:' .. once.subject, once.expires, once.key)
    redis.call('SADD', T .. ':subjects', once.subject)
    if once.request ~= NONE then redis.call('HSET', T .. ':dr', once.request, once.subject .. '\0' .. once.key) end
  else
    if redis.call('HEXISTS', T .. ':se', once.id) == 0 then
      local old = redis.call('ZRANGEBYSCORE', T .. ':sx', '-inf', int(now), 'LIMIT', 0, expired_max)
      if #old == 0 and redis.call('HLEN', T .. ':se') >= sessions_max then old = redis.call('ZRANGE', T .. ':sx', 0, 0) end
      if #old > 0 then
        redis.call('HDEL', T .. ':se', unpack(old))
        redis.call('ZREM', T .. ':sx', unpack(old))
      end
    end
    redis.call('HSET', T .. ':se', once.id, record)
    redis.call('ZADD', T .. ':sx', once.expires, once.id)
  end
end
local rung = write_appends(node)
for _, place in ipairs(alarms) do rung[#rung + 1] = place end
save()
return {'OK', results, rung, rooms}
