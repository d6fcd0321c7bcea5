-- The last commit id of one partition, where an operation on several bears `id`.
local function derived(id, index)
  local low = bit.bxor(struct.unpack('>I2', id, 15), index + 1)
  return string.sub(id, 1, 14) .. struct.pack('>I2', low)
end
-- When a partition needs an owner.
local function set_ready(t, p)
  local v, member = t.p[p], t.stage .. ':' .. p
  local when
  if v[4] > v[5] then
    when = 0
  else
    for i, kind in ipairs({':kd:', ':td:'}) do
      if v[4 + i] > 0 then
        local first = redis.call('ZRANGE', T .. kind .. t.stage .. ':' .. p, 0, 0, 'WITHSCORES')[2]
        if first and (not when or tonumber(first) < when) then when = tonumber(first) end
      end
    end
  end
  if when then redis.call('ZADD', T .. ':ready', int(when), member) else redis.call('ZREM', T .. ':ready', member) end
end
local function ring_all(node, t)
  local bells, all = {node}, math.max(t.partitions, t.former)
  for p = 0, all - 1 do bells[#bells + 1] = 'b' .. t.stage .. ':' .. p .. '\n' end
  redis.call('PUBLISH', T .. ':bell', table.concat(bells))
  return all
end
