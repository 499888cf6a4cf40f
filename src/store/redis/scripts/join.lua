-- join: starts an incarnation of a process. ARGV[5..]: lease in microseconds, host, pid, version, limits, then the
-- lanes that it serves.
-- Replies `joined INCARNATION`, then the limits of the other living ones; or `format F`: another form of the keys.
if call('HGET', META, 'fmt') == false then
    -- An engine that lost all data must not assign an incarnation or a fence again: they continue from the time.
    call('HSET', META, 'fmt', '1', 'fence', text(now))
end
local format = call('HGET', META, 'fmt')
if format ~= '1' then return reply({'format', format}) end
local inc = fence()
local answer = {'joined', inc}
for _, other in ipairs(call('ZRANGE', P .. 'i', 0, -1)) do
    answer[#answer + 1] = call('HGET', P .. 'i:' .. other, 'limits') or ''
end
local lanes = {}
for n = 10, #ARGV do
    call('SADD', P .. 'lanes', ARGV[n])
    lanes[#lanes + 1] = ARGV[n]
end
call('ZADD', P .. 'i', text(now + ARGV[5]), inc)
call('HSET', P .. 'i:' .. inc, 'proc', PROC, 'host', ARGV[6], 'pid', ARGV[7], 'version', ARGV[8], 'limits', ARGV[9],
    'lanes', table.concat(lanes, '\n'))
call('HSET', P .. 'm:' .. PROC, 'inc', inc)
call('PERSIST', P .. 'm:' .. PROC)
return reply(answer)
