-- A topic's counters: field `f` as commits tell, `c` for all of it, `p<index>` for the append side of each partition.
--   c: unread, their bytes, parked, their bytes, timers, dead letters, their bytes,
--      the bounds (messages, bytes) at which an inbox and a dead-letter topic refused somebody who waits for room, or 0
--   sk, sb: keys with state, and their bytes (see puts.lua)
--   l: the latest birth of the stage that somebody used it as, generation, partitions, how many of them have a seal, partitions before
--   p: next entry, messages and bytes ever appended, messages waiting (unread and parked), parked, timers
local C = '<I8I8I8I8I8I8I8I8I8I8I8'
local P = '<I8I8I8I8I8I8'
local L = '<I8I8I4I4I4'
local topics = {}
local loaded = {}
local function load(stage, parts)
  local t = topics[stage]
  if not t then
    t = {stage = stage, key = T .. ':t:' .. stage, p = {}, born = 0, generation = 0, partitions = 0, sealed = 0, former = 0, c = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}
    topics[stage] = t
    loaded[#loaded + 1] = t
  end
  local fields, asked = {}, {}
  if t.exists == nil then fields[1], fields[2] = 'c', 'l' end
  for _, p in ipairs(parts) do
    if not t.p[p] then
      t.p[p] = {0, 0, 0, 0, 0, 0}
      fields[#fields + 1] = 'p' .. p
      asked[#asked + 1] = p
    end
  end
  if #fields == 0 then return t end
  local found = redis.call('HMGET', t.key, unpack(fields))
  local first = 0
  if t.exists == nil then
    first = 2
    t.exists = found[1] and true or false
    if found[1] then t.c = {struct.unpack(C, found[1])} end
    if found[2] then t.born, t.generation, t.partitions, t.sealed, t.former = struct.unpack(L, found[2]) end
  end
  for i, p in ipairs(asked) do
    local packed = found[i + first]
    if packed then t.p[p] = {struct.unpack(P, packed)} end
  end
  return t
end
local function save()
  for _, t in ipairs(loaded) do
    if t.dirty then
      local c = t.c
      local args = {'l', struct.pack(L, t.born, t.generation, t.partitions, t.sealed, t.former), 'c', struct.pack(C, c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9], c[10], c[11])}
      for p, v in pairs(t.p) do
        if v.dirty then
          args[#args + 1] = 'p' .. p
          args[#args + 1] = struct.pack(P, v[1], v[2], v[3], v[4], v[5], v[6])
        end
      end
      redis.call('HSET', t.key, unpack(args))
      if not t.exists then redis.call('SADD', T .. ':topics', t.stage) end
    end
  end
end
-- What a writer says of a topic. Returns whether it is wrong about the number of partitions.
local function used(t, born, partitions)
  if born > t.born then t.born = born end
  if t.partitions == 0 then t.partitions = partitions end
  return t.partitions ~= partitions
end
-- Whether a stage was removed as a writer knows it: as it was born then, or earlier.
local function is_removed(stage, born)
  local last = redis.call('HGET', T .. ':x', stage)
  return last and born <= tonumber(last) and on('n')
end
-- Unread and parked together have reached `percent` of a bound.
local function full(t, messages, bytes, percent)
  return (t.c[1] + t.c[3]) * 100 >= messages * percent or (t.c[2] + t.c[4]) * 100 >= bytes * percent
end
local function dead_full(t, messages, bytes) return t.c[6] >= messages or t.c[7] >= bytes end
-- Whether those who were refused should be told of room.
local function frees(t)
  local c, ring = t.c, false
  if c[8] > 0 and not full(t, c[8], c[9], 50) then
    c[8], c[9] = 0, 0
    ring = true
  end
  if c[10] > 0 and c[6] * 2 < c[10] and c[7] * 2 < c[11] then
    c[10], c[11] = 0, 0
    ring = true
  end
  return ring
end
