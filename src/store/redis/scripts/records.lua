-- records: the records of an owner's jobs above an id, ascending, or below it, descending. ARGV[5..]: owner, whether
-- to include pending jobs (1 or 0), and done ones, id, how many at most, whether descending (1 or 0).
-- Replies for each its id and the fields of `told`. Changes nothing.
local owner, most, is_descending = ARGV[5], ARGV[9], ARGV[10] == '1'
local range, last = 'ZRANGEBYSCORE', '+inf'
if is_descending then range, last = 'ZREVRANGEBYSCORE', '-inf' end
local ids = {}
for n, list in ipairs({'p:', 'd:'}) do
    if ARGV[5 + n] == '1' then
        for _, id in ipairs(call(range, P .. list .. owner, ARGV[8], last, 'LIMIT', 0, most)) do ids[#ids + 1] = id end
    end
end
table.sort(ids, function(a, b)
    if is_descending then a, b = b, a end
    return tonumber(a) < tonumber(b)
end)
local answer = {}
for n = 1, math.min(#ids, tonumber(most)) do
    answer[n] = {ids[n], told(ids[n])}
end
return answer
