-- name, field, value
allow_when_full()
tell_process(ARGV[1], ARGV[2], ARGV[3])
return 1
