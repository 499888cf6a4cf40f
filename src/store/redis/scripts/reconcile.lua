-- reconcile: makes the engine and an incarnation agree on the jobs that run there. ARGV[5..]: incarnation, then as for
-- reap the message, footprint and ending of an interrupted job, footprint and ending of a cancelled one, then `ID
-- FENCE` for each job that it runs. The incarnation asks for no jobs in the meantime.
-- Replies `stop`, then the ids of those that, for the engine, no longer run; or `fenced`. May happen twice.
local inc = ARGV[5]
if not is_living(inc) then return {'fenced'} end
local known, answer = {}, {'stop'}
for n = 11, #ARGV, 2 do
    local id = ARGV[n]
    known[id] = true
    local j = job(id, 's', 'F')
    if j.s ~= 'r' or j.F ~= ARGV[n + 1] then answer[#answer + 1] = id end
end
for _, id in ipairs(call('SMEMBERS', P .. 'run:' .. inc)) do
    if not known[id] then interrupt(inc, id, ARGV[6], ARGV[7], ARGV[8], {ARGV[9], ARGV[10]}) end
end
return answer
