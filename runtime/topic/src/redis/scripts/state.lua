-- The second half of a read: which lanes are held, and the state of keys. Valid only while token and base are the owner's.
-- SEAL: bytes of format and checksum around each stored value, which do not count.
local SEAL = 5
local token, base, budget = take(), take(), num()
local v = redis.call('HMGET', part, 'tok', 'last')
if v[1] ~= token then return {gone() and 'GONE' or 'FENCED'} end
if (v[2] or NONE) ~= base then return {'STALE'} end
local held = {}
for i = 1, num() do
  local lane = take()
  held[i] = #redis.call('ZRANGEBYLEX', T .. ':kl:' .. stage .. ':' .. p, '[' .. lane, '(' .. lane .. '\255', 'LIMIT', 0, 1)
end
-- Keys come by bucket; `order` is their place among the inputs, so that a budget cuts where inputs end.
local blobs, spilled = {}, {}
for _ = 1, num() do
  local bucket, n = T .. ':st:' .. stage .. ':' .. take(), num()
  local keys, order = {}, {}
  for i = 1, n do keys[i], order[i] = take(), num() end
  local at_most, i = 2000, 1
  while i <= n do
    local to = math.min(i + at_most - 1, n)
    local found = redis.call('HMGET', bucket, unpack(keys, i, to))
    for j = i, to do blobs[order[j]] = found[j - i + 1] or '' end
    i = to + 1
  end
end
-- Names and values of an inline field, without what frames them.
local function net(blob)
  local size, pos = 0, 2
  while pos <= #blob do
    local nl, vl = struct.unpack('<I2I4', blob, pos)
    size, pos = size + nl + vl - SEAL, pos + 6 + nl + vl
  end
  return size
end
local size, cut = 0, #blobs
for i = 1, #blobs do
  if size >= budget and i > 1 then
    cut = i - 1
    break
  end
  local blob = blobs[i]
  if string.byte(blob) == 115 then
    -- `s<id>`: too large for its bucket, in a hash of its own.
    local all = redis.call('HGETALL', T .. ':s:' .. string.sub(blob, 2))
    for j = 1, #all, 2 do size = size + #all[j] + #all[j + 1] - SEAL end
    blobs[i] = all
  else
    size = size + net(blob)
  end
end
for i = #blobs, cut + 1, -1 do blobs[i] = nil end
return {'OK', held, blobs}
