-- State. A bucket's field holds all values of one key: `i` and entries (name length, value length, name, value), or `s<id>` once they
-- are too large, with a hash of their own.
local INLINE, state_stage
-- SEAL: bytes of format and checksum around each stored value, which do not count.
local SEAL, STATE_BUCKETS = 5, 16
-- What an inline field counts for: its key, and names and values without what frames them.
local function counts(key, blob)
  if not blob then return 0 end
  local size, pos = #key, 2
  while pos <= #blob do
    local nl, vl = struct.unpack('<I2I4', blob, pos)
    size, pos = size + nl + vl - SEAL, pos + 6 + nl + vl
  end
  return size
end
-- Both return the field, and by how much it counts for more.
local function entries_of(blob)
  local list, pos = {}, 2
  while pos <= #blob do
    local nl, vl = struct.unpack('<I2I4', blob, pos)
    local stop = pos + 6 + nl + vl
    list[#list + 1] = {string.sub(blob, pos + 6, pos + 5 + nl), string.sub(blob, pos, stop - 1)}
    pos = stop
  end
  return list
end
local function spilled(field, blob, names, puts)
  local key = T .. ':s:' .. string.sub(blob, 2)
  local hset, hdel, grown = {}, {}, 0
  for _, name in ipairs(names) do
    local entry, former = puts[name], redis.call('HSTRLEN', key, name)
    if former > 0 then grown = grown - #name - former + SEAL end
    if entry ~= '' then grown = grown + #entry - 6 - SEAL end
    if entry == '' then
      hdel[#hdel + 1] = name
    else
      hset[#hset + 1], hset[#hset + 2] = name, string.sub(entry, 7 + #name)
    end
  end
  many('HSET', key, hset)
  many('HDEL', key, hdel)
  if redis.call('EXISTS', key) == 1 then return blob, grown end
  redis.call('SREM', T .. ':sx:' .. state_stage, string.sub(blob, 2))
  return nil, grown - #field
end
local function merged(field, blob, names, puts)
  if blob and string.byte(blob) == 115 then return spilled(field, blob, names, puts) end
  local before = counts(field, blob)
  local out = {'i'}
  if blob then
    for _, entry in ipairs(entries_of(blob)) do
      if puts[entry[1]] == nil then out[#out + 1] = entry[2] end
    end
  end
  for _, name in ipairs(names) do
    if puts[name] ~= '' then out[#out + 1] = puts[name] end
  end
  if #out == 1 then return nil, -before end
  local whole = table.concat(out)
  local grown = counts(field, whole) - before
  if #whole <= INLINE then return whole, grown end
  local spill = int(redis.call('HINCRBY', KEYS[1], 'spill', 1))
  local hset = {}
  for _, entry in ipairs(entries_of(whole)) do
    hset[#hset + 1], hset[#hset + 2] = entry[1], string.sub(entry[2], 7 + #entry[1])
  end
  many('HSET', T .. ':s:' .. spill, hset)
  redis.call('SADD', T .. ':sx:' .. state_stage, spill)
  return 's' .. spill, grown
end
-- Straight from the arguments, since nothing needs to be looked at.
local function pass(command, key, n)
  local i, stop = at + 1, at + n
  while i <= stop do
    redis.call(command, key, unpack(ARGV, i, math.min(i + 3999, stop)))
    i = i + 4000
  end
  at = stop
end
-- The arguments from here on, as `write_puts` lays them out behind the place where they end.
local function put_state(stage)
  INLINE, state_stage = num(), stage
  -- By the keys whose new value the owner knows whole; what is merged comes on top.
  local keys_grown, bytes_grown = num(), num()
  for _ = 1, num() do
    local bucket = T .. ':st:' .. state_stage .. ':' .. take()
    -- Fields whose new value the owner knows whole, then those that go, then those to merge.
    pass('HSET', bucket, num() * 2)
    pass('HDEL', bucket, num())
    local keys, changes = {}, {}
    local hset, hdel, from = {}, {}, 1
    for i = 1, num() do
      keys[i] = take()
      local names, puts = {}, {}
      for j = 1, num() do
        names[j] = take()
        puts[names[j]] = take()
      end
      changes[i] = {names, puts}
    end
    while from <= #keys do
      local to = math.min(from + 1999, #keys)
      local found = redis.call('HMGET', bucket, unpack(keys, from, to))
      for i = from, to do
        local was = found[i - from + 1] or nil
        local blob, grown = merged(keys[i], was, changes[i][1], changes[i][2])
        bytes_grown = bytes_grown + grown
        keys_grown = keys_grown + (blob and 1 or 0) - (was and 1 or 0)
        if blob then
          hset[#hset + 1], hset[#hset + 2] = keys[i], blob
        else
          hdel[#hdel + 1] = keys[i]
        end
      end
      from = to + 1
    end
    many('HSET', bucket, hset)
    many('HDEL', bucket, hdel)
  end
  if keys_grown == 0 and bytes_grown == 0 then return end
  local topic = T .. ':t:' .. stage
  if redis.call('HEXISTS', topic, 'sk') == 1 then
    redis.call('HINCRBY', topic, 'sk', int(keys_grown))
    redis.call('HINCRBY', topic, 'sb', int(bytes_grown))
  else
    -- Of a store that did not count yet: the keys can be asked for, their bytes count from now on.
    local n = 0
    for b = 0, STATE_BUCKETS - 1 do n = n + redis.call('HLEN', T .. ':st:' .. stage .. ':' .. b) end
    redis.call('HSET', topic, 'sk', int(n), 'sb', int(bytes_grown))
  end
end
