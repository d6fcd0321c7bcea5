-- Pieces of a life that is set aside, by kind, in an order in which each finds what it needs.
local node = take()
fresh, drawn = take(), 0
FRAME_MESSAGES, FRAME_BYTES, FRAME_SPLIT = num(), num(), num()
if redis.call('HGET', KEYS[1], 'aside') ~= 'f' .. take() then return {gone() and 'GONE' or 'FENCED'} end
local function key(kind, stage, p) return T .. kind .. stage .. ':' .. p end
local touched = {}
local function touch(stage, p)
  local t = load(stage, {p})
  t.dirty, t.p[p].dirty = true, true
  touched[stage .. ':' .. p] = {t, p}
  return t, t.p[p]
end
for _ = 1, num() do
  local t = load(take(), {})
  t.born, t.generation, t.partitions, t.former, t.dirty = num(), num(), num(), num(), true
end
for _ = 1, num() do
  local stage, p, last, unclean, mark, marks, sealed = take(), num(), take(), num(), take(), num(), take() == '1'
  local t = touch(stage, p)
  local part = key(':p:', stage, p)
  redis.call('HSET', part, 'seq', 0, 'last', last, 'un', unclean, 'mu', mark, 'mc', marks)
  if sealed then
    redis.call('HSET', part, 'seal', 0, 'sn', 0)
    t.sealed = t.sealed + 1
  end
end
-- All frames of one call are behind their seals, or none is.
local behind = take() == '1'
for _ = 1, num() do
  local stage, p = take(), num()
  local t = touch(stage, p)
  add(t, p, 0, num(), num(), take(), take())
end
local seals = {}
for _, frames in ipairs(in_order) do seals[#seals + 1] = {frames.t, frames.p} end
write_appends(node)
if not behind then
  for _, at in ipairs(seals) do
    local part, v = key(':p:', at[1].stage, at[2]), at[1].p[at[2]]
    if redis.call('HEXISTS', part, 'seal') == 1 then redis.call('HSET', part, 'seal', int(v[1]), 'sn', int(v[2])) end
  end
end
for _ = 1, num() do
  local stage, p, lane, due, record = take(), num(), take(), num(), take()
  local t, v = touch(stage, p)
  local ord = struct.pack('>I8', redis.call('HINCRBY', key(':p:', stage, p), 'ord', 1))
  if #redis.call('ZRANGEBYLEX', key(':kl:', stage, p), '[' .. lane, '(' .. lane .. '\255', 'LIMIT', 0, 1) == 0 then
    redis.call('ZADD', key(':kd:', stage, p), due, ord)
  end
  redis.call('HSET', key(':k:', stage, p), ord, record)
  redis.call('ZADD', key(':kl:', stage, p), 0, lane .. ord)
  t.c[3], t.c[4], v[4], v[5] = t.c[3] + 1, t.c[4] + struct.unpack('<I8', record, 25), v[4] + 1, v[5] + 1
end
for _ = 1, num() do
  local stage, p, member, when, record = take(), num(), take(), num(), take()
  local t, v = touch(stage, p)
  if redis.call('HSET', key(':tm:', stage, p), member, record) == 1 then t.c[5], v[6] = t.c[5] + 1, v[6] + 1 end
  redis.call('ZADD', key(':td:', stage, p), when, member)
end
for _ = 1, num() do
  local stage = take()
  -- The place where the section ends, which a commit needs to know.
  num()
  put_state(stage)
end
for _ = 1, num() do
  local stage, id, body = take(), take(), take()
  local t = load(stage, {})
  t.dirty = true
  redis.call('XADD', T .. ':d:' .. stage, id .. '-0', 'b', body)
  t.c[6], t.c[7] = t.c[6] + 1, t.c[7] + #body
  if tonumber(id) > tonumber(redis.call('HGET', KEYS[1], 'letter') or '0') then redis.call('HSET', KEYS[1], 'letter', id) end
end
for _ = 1, num() do
  local subject, name, fingerprint, request, expires, reply = take(), take(), take(), take(), num(), take()
  redis.call('HSET', T .. ':dd:' .. subject, name, fingerprint .. request .. struct.pack('<I8I8', expires, 0) .. reply)
  redis.call('ZADD', T .. ':dx:' .. subject, int(expires), name)
  redis.call('SADD', T .. ':subjects', subject)
  if request ~= NONE then redis.call('HSET', T .. ':dr', request, subject .. '\0' .. name) end
  if #reply > 0 then redis.call('HINCRBY', T .. ':dm', subject, #reply) end
end
for _ = 1, num() do
  local id, high, expires = take(), num(), num()
  redis.call('HSET', T .. ':se', id, struct.pack('<I8I8', high, expires))
  redis.call('ZADD', T .. ':sx', int(expires), id)
end
for _ = 1, num() do redis.call('HSET', T .. ':x', take(), int(num())) end
for member, at in pairs(touched) do
  local t, p = at[1], at[2]
  -- A seal is work too.
  if redis.call('HEXISTS', key(':p:', t.stage, p), 'seal') == 1 then redis.call('ZADD', T .. ':ready', 0, member) else set_ready(t, p) end
end
save()
return {'OK'}
