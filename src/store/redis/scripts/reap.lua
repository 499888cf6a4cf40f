-- reap: gives back what one incarnation past its lease had, at most 64 jobs. ARGV[5..]: lease in microseconds, the
-- message, footprint and ending of an interrupted job, footprint and ending of a cancelled one.
-- Replies `none`; `mercy`: no instance could reach the engine for a while, or its clock jumped, so nothing is reaped
-- for a lease; or `reaped INCARNATION HOST PID INTERRUPTED AGAIN RESTORED MORE`.
local lease, tick, mercy = tonumber(ARGV[5]), meta('tick'), meta('mercy')
call('HSET', META, 'tick', text(now))
if now < tick - 1000000 then
    for _, inc in ipairs(call('ZRANGE', P .. 'i', 0, -1)) do call('ZADD', P .. 'i', text(now + lease), inc) end
end
if now < tick - 1000000 or now - tick > lease / 2 or mercy > now + lease then
    mercy = now + lease
    call('HSET', META, 'mercy', text(mercy))
end
local inc = call('SRANDMEMBER', P .. 'gone')
if not inc then
    if now < mercy then return {'mercy'} end
    inc = call('ZRANGEBYSCORE', P .. 'i', '-inf', text(now), 'LIMIT', 0, 1)[1]
    if not inc then return {'none'} end
    call('ZREM', P .. 'i', inc)
    call('SADD', P .. 'gone', inc)
end
local counts, is_over = give_back(inc, 64, {ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]})
local who = call('HMGET', P .. 'i:' .. inc, 'host', 'pid', 'proc')
if is_over then
    -- A process that joined anew still needs its memo; any other memo is useless a day later.
    if who[3] and call('HGET', P .. 'm:' .. who[3], 'inc') == inc then
        call('EXPIRE', P .. 'm:' .. who[3], 86400)
    end
    call('UNLINK', P .. 'i:' .. inc, P .. 'run:' .. inc, P .. 'dlv:' .. inc, P .. 'x:' .. inc)
    call('SREM', P .. 'gone', inc)
end
return {'reaped', inc, who[1] or '', who[2] or '', text(counts.interrupted), text(counts.again), text(counts.restored),
    is_over and '0' or '1'}
