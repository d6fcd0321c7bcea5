-- Whether the catalog is another than the one that somebody decided on. Nobody names one: it does not matter.
local function moved(seen) return seen ~= '' and seen ~= (redis.call('GET', KEYS[1] .. ':n') or '0') and on('a') end
-- A write was made. Its number is its place in the catalog's history, above `above`, and 21 bits of chance: two histories that a failover
-- parted have the same places, and not the same numbers.
local function wrote(node, fresh, above)
  local place = math.max(tonumber(redis.call('GET', KEYS[1] .. ':seq') or '0'), above) + 1
  redis.call('SET', KEYS[1] .. ':seq', int(place))
  redis.call('SET', KEYS[1] .. ':n', int(place * 2097152 + fresh))
  redis.call('PUBLISH', KEYS[1] .. ':bell', node)
end
