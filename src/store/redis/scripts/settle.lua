-- settle: ends deliveries. ARGV[5..]: whether logs are kept (1 or 0), then for each `confirm` or `restore`, its id and
-- fence. A result that is no longer in this delivery does not change, so it may happen twice.
-- Replies `settled`.
for n = 6, #ARGV, 3 do
    local id = ARGV[n + 1]
    local j = job(id, 's', 'o', 'F', 'i', 'b', 'lg', 'f', 'fa')
    if j.s == 'v' and j.F == ARGV[n + 2] then
        if ARGV[n] == 'restore' then
            restore(id, j)
        else
            call('SREM', P .. 'dlv:' .. j.i, id)
            call('ZREM', P .. 'v:' .. j.o, id)
            local log = tonumber(j.lg or 0)
            if ARGV[5] == '1' and log > 0 and not is_gone(j.o, id) then
                local bytes = RECORD + allocated(log)
                call('UNLINK', P .. 'r:' .. id, P .. 'n:' .. id)
                call('HDEL', P .. 'j:' .. id, 'i', 'F', 'e')
                call('HSET', P .. 'j:' .. id, 's', 'c', 'b', text(bytes))
                add('bytes', bytes - j.b)
                add('logbytes', bytes)
                call('ZADD', P .. 'lg:' .. j.o, id, id)
                call('ZADD', P .. 'le', text(age()), id)
                if call('ZCARD', P .. 'lg:' .. j.o) > LOGS then
                    drop_log(call('ZRANGE', P .. 'lg:' .. j.o, 0, 0)[1])
                end
            else
                remove(id, j.b)
            end
        end
    end
end
return reply({'settled'})
