-- Removes one topic; of a life that is gone without looking at what is in it. `UNLINK` frees in the background, so this is short: eight
-- keys a partition, the state's buckets. What spilled is left to be swept in slices.
local node, stage, buckets, force = take(), take(), num(), take() == '1'
if gone() and not force then return {'GONE'} end
local t = load(stage, {})
if not force and t.c[1] + t.c[3] + t.c[5] + t.c[6] > 0 then return {'KEPT'} end
local fields = redis.call('HKEYS', t.key)
for _, field in ipairs(fields) do
  local p = string.match(field, '^p(%d+)$')
  if p then
    local keys = {}
    for i, kind in ipairs({':p:', ':in:', ':k:', ':kl:', ':kd:', ':tm:', ':td:'}) do keys[i] = T .. kind .. stage .. ':' .. p end
    redis.call('UNLINK', unpack(keys))
    redis.call('ZREM', T .. ':ready', stage .. ':' .. p)
  end
end
local keys = {t.key, T .. ':d:' .. stage}
for b = 0, buckets - 1 do keys[#keys + 1] = T .. ':st:' .. stage .. ':' .. b end
redis.call('UNLINK', unpack(keys))
redis.call('SUNIONSTORE', T .. ':trash', T .. ':trash', T .. ':sx:' .. stage)
redis.call('UNLINK', T .. ':sx:' .. stage)
redis.call('SREM', T .. ':topics', stage)
redis.call('PUBLISH', T .. ':bell', node .. 't' .. stage .. '\n')
return {'OK'}
