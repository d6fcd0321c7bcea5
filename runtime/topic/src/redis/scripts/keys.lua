local stage, buckets, n = take(), num(), 0
for b = 0, buckets - 1 do n = n + redis.call('HLEN', T .. ':st:' .. stage .. ':' .. b) end
return {'OK', n, int(math.max(0, tonumber(redis.call('HGET', T .. ':t:' .. stage, 'sb') or '0')))}
