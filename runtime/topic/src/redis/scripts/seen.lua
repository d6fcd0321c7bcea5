-- Whether the catalog is another than the one that somebody decided on. Nobody names one: it does not matter.
local function moved(seen) return seen ~= '' and seen ~= (redis.call('GET', KEYS[1] .. ':n') or '0') and on('a') end
