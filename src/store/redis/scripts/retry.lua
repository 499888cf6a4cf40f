-- retry: delays a running job: then it runs again, or is done with the answer that it has. ARGV[5..]: incarnation, id,
-- fence, delay in microseconds, attempts at it (empty: unchanged), shortages, log, progress, answer (or empty), its
-- footprint, ending, how much was logged in all. `interrupt` does not count a run that ends here as a start.
-- Replies `delayed`; `cancelled` or `full`: the caller must finish it; `lost` or `fenced`.
local inc, id = ARGV[5], ARGV[6]
if not is_living(inc) then return reply({'fenced'}) end
local j = job(id, 's', 'F', 'x', 'b', 'base')
if j.s ~= 'r' or j.F ~= ARGV[7] then return reply({'lost'}) end
if j.x then return reply({'cancelled'}) end
local key, until_, log, answer = P .. 'j:' .. id, text(now + ARGV[8]), ARGV[11], ARGV[13]
local bytes = answer ~= '' and j.base + ARGV[14] + allocated(#log) or 0
if bytes > tonumber(j.b) then return reply({'full'}) end
call('SREM', P .. 'run:' .. inc, id)
call('HDEL', key, 'i', 'F')
call('HSET', key, 's', 'w', 'lg', #log)
if ARGV[9] ~= '' then call('HSET', key, 'm', ARGV[9], 'sh', ARGV[10], 'lo', ARGV[16]) end
if ARGV[12] ~= '' then call('HSET', key, 'p', ARGV[12]) end
call('HINCRBY', key, 'n', -1)
if log ~= '' then call('SET', P .. 'g:' .. id, log) end
if answer == '' then
    call('ZADD', P .. 'w', until_, id)
else
    call('SET', P .. 'r:' .. id, answer)
    call('HSET', key, 'z', text(bytes), 'e', ARGV[15])
    call('ZADD', P .. 'ws', until_, id)
end
return reply({'delayed'})
