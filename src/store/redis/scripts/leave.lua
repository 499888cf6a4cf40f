-- leave: ends an incarnation in order and gives back what it has. ARGV[5..]: incarnation, then as for reap the
-- message, footprint and ending of an interrupted job, footprint and ending of a cancelled one.
-- Replies `left INTERRUPTED AGAIN RESTORED`, or `more`: call it again. May happen twice.
local inc = ARGV[5]
local counts, is_over = give_back(inc, 512, {ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]})
if not is_over then return {'more'} end
call('ZREM', P .. 'i', inc)
call('SREM', P .. 'gone', inc)
call('UNLINK', P .. 'i:' .. inc, P .. 'run:' .. inc, P .. 'dlv:' .. inc, P .. 'x:' .. inc, P .. 'm:' .. PROC)
return {'left', text(counts.interrupted), text(counts.again), text(counts.restored)}
