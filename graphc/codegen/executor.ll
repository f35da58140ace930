; The native executor: see executor.py, which fills in the words that start with a dollar sign.

declare ptr @PyLong_AsVoidPtr(ptr)
declare i64 @PyLong_AsLong(ptr)
declare ptr @PyLong_FromLong(i64)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @graphc_parallel_for(ptr, ptr, ptr, ptr, ptr, i64, i64, i32)

; the number of chunks of a step
define internal i64 @count(ptr %step) {
  %extent.at = getelementptr i64, ptr %step, i64 3
  %extent = load i64, ptr %extent.at
  %grain.at = getelementptr i64, ptr %step, i64 4
  %grain = load i64, ptr %grain.at
  %less = sub i64 %grain, 1
  %up = add i64 %extent, %less
  %chunks = sdiv i64 %up, %grain
  ret i64 %chunks
}

; run the chunks first..stop of one step
define internal void @chunks(ptr %step, i64 %first, i64 %stop) {
entry:
  %entry.of = load ptr, ptr %step
  %bufs.at = getelementptr i64, ptr %step, i64 1
  %bufs = load ptr, ptr %bufs.at
  %sizes.at = getelementptr i64, ptr %step, i64 2
  %sizes = load ptr, ptr %sizes.at
  %extent.at = getelementptr i64, ptr %step, i64 3
  %extent = load i64, ptr %extent.at
  %grain.at = getelementptr i64, ptr %step, i64 4
  %grain = load i64, ptr %grain.at
  %some = icmp slt i64 %first, %stop
  br i1 %some, label %loop, label %done
loop:
  %chunk = phi i64 [ %first, %entry ], [ %next, %loop ]
  %begin = mul i64 %chunk, %grain
  %after = add i64 %begin, %grain
  %whole = icmp slt i64 %after, %extent
  %end = select i1 %whole, i64 %after, i64 %extent
  call void %entry.of(ptr %bufs, ptr %sizes, i64 %chunk, i64 %begin, i64 %end)
  %next = add i64 %chunk, 1
  %more = icmp slt i64 %next, %stop
  br i1 %more, label %loop, label %done
done:
  ret void
}

; What parallel_for calls: hand `first` of `hands` runs chunks of a wave, counted through its steps one after
; another. Each hand has a range of its own, so that a thread walks through neighbouring memory, and takes the
; chunks of other ranges that are left when it is through: chunks differ in their work, and threads in their
; time. The job: its steps, the number of chunks, the number of hands; then, a line of the cache each, how many
; of each range are taken.
define internal void @part(ptr %args, ptr %dims, ptr %strides, ptr %job) {
entry:
  %first = load i64, ptr %args
  %wave = load ptr, ptr %job
  %total.at = getelementptr i64, ptr %job, i64 1
  %total = load i64, ptr %total.at
  %hands.at = getelementptr i64, ptr %job, i64 2
  %hands = load i64, ptr %hands.at
  br label %range
range:
  %r = phi i64 [ 0, %entry ], [ %r.next, %over ]
  %h.far = add i64 %first, %r
  %h = srem i64 %h.far, %hands
  %h.next = add i64 %h, 1
  %begin.all = mul i64 %h, %total
  %begin = sdiv i64 %begin.all, %hands
  %end.all = mul i64 %h.next, %total
  %end = sdiv i64 %end.all, %hands
  %taken.word = mul i64 %h.next, 8
  %taken = getelementptr i64, ptr %job, i64 %taken.word
  br label %look
look:
  %seen = load atomic i64, ptr %taken monotonic, align 8
  %first.left = add i64 %begin, %seen
  %left = icmp slt i64 %first.left, %end
  br i1 %left, label %take, label %over
take:
  %mine = atomicrmw add ptr %taken, i64 1 monotonic
  %chunk = add i64 %begin, %mine
  %some = icmp slt i64 %chunk, %end
  br i1 %some, label %find, label %over
find:
  %step = phi ptr [ %wave, %take ], [ %following, %pass ]
  %own = phi i64 [ %chunk, %take ], [ %less, %pass ]
  %n = call i64 @count(ptr %step)
  %here = icmp slt i64 %own, %n
  br i1 %here, label %run, label %pass
pass:
  %less = sub i64 %own, %n
  %following = getelementptr i64, ptr %step, i64 $columns
  br label %find
run:
  %next = add i64 %own, 1
  call void @chunks(ptr %step, i64 %own, i64 %next)
  br label %take
over:
  %r.next = add i64 %r, 1
  %more = icmp slt i64 %r.next, %hands
  br i1 %more, label %range, label %done
done:
  ret void
}

define void @graphc_run(ptr %steps, i64 %nsteps, i64 %nthreads) {
entry:
  %first = alloca i64
  %dims = alloca i64, i64 2
  %strides = alloca i64, i64 2
  %hands.most = call i64 @llvm.smax.i64(i64 %nthreads, i64 1)
  %lines = add i64 %hands.most, 1
  %words = mul i64 %lines, 8
  %job = alloca i64, i64 %words, align 64
  %wanted = icmp sgt i64 %nthreads, 1
  %many = and i1 %wanted, $parallel
  br label %head
head:
  %index = phi i64 [ 0, %entry ], [ %index.next, %next ]
  %going = icmp slt i64 %index, %nsteps
  br i1 %going, label %wave, label %done
wave:
  %offset = mul i64 %index, $columns
  %step = getelementptr i64, ptr %steps, i64 %offset
  %width.at = getelementptr i64, ptr %step, i64 5
  %width.raw = load i64, ptr %width.at
  %may = icmp sgt i64 %width.raw, 0
  %width = select i1 %may, i64 %width.raw, i64 1
  %index.next = add i64 %index, %width
  br label %sum
sum:
  %k = phi i64 [ 0, %wave ], [ %k.next, %sum ]
  %so.far = phi i64 [ 0, %wave ], [ %total, %sum ]
  %k.offset = mul i64 %k, $columns
  %k.step = getelementptr i64, ptr %step, i64 %k.offset
  %k.count = call i64 @count(ptr %k.step)
  %total = add i64 %so.far, %k.count
  %k.next = add i64 %k, 1
  %k.more = icmp slt i64 %k.next, %width
  br i1 %k.more, label %sum, label %choose
choose:
  %several = icmp sgt i64 %total, 1
  %worth = and i1 %several, %many
  %forks = and i1 %worth, %may
  br i1 %forks, label %fork, label %serial
fork:
  %crowd = icmp slt i64 %total, %nthreads
  %hands = select i1 %crowd, i64 %total, i64 %nthreads
  store ptr %step, ptr %job
  %job.total = getelementptr i64, ptr %job, i64 1
  store i64 %total, ptr %job.total
  %job.hands = getelementptr i64, ptr %job, i64 2
  store i64 %hands, ptr %job.hands
  br label %clear
clear:
  %h = phi i64 [ 0, %fork ], [ %h.next, %clear ]
  %h.next = add i64 %h, 1
  %h.word = mul i64 %h.next, 8
  %h.taken = getelementptr i64, ptr %job, i64 %h.word
  store i64 0, ptr %h.taken
  %h.more = icmp slt i64 %h.next, %hands
  br i1 %h.more, label %clear, label %go
go:
  store i64 0, ptr %first
  store i64 %hands, ptr %dims
  store i64 1, ptr %strides
  %few = trunc i64 %nthreads to i32
  call void @graphc_parallel_for(ptr @part, ptr %first, ptr %dims, ptr %strides, ptr %job,
                                 i64 0, i64 1, i32 %few)
  br label %next
serial:
  %s = phi i64 [ 0, %choose ], [ %s.next, %serial ]
  %s.offset = mul i64 %s, $columns
  %s.step = getelementptr i64, ptr %step, i64 %s.offset
  %s.count = call i64 @count(ptr %s.step)
  call void @chunks(ptr %s.step, i64 0, i64 %s.count)
  %s.next = add i64 %s, 1
  %s.more = icmp slt i64 %s.next, %width
  br i1 %s.more, label %serial, label %next
next:
  br label %head
done:
  ret void
}

; a kernel: copy bytes begin..end of the first buffer to the second
define void @graphc_copy(ptr %bufs, ptr %sizes, i64 %chunk, i64 %begin, i64 %end) {
  %from.slot = load ptr, ptr %bufs
  %from = load ptr, ptr %from.slot
  %to.at = getelementptr ptr, ptr %bufs, i64 1
  %to.slot = load ptr, ptr %to.at
  %to = load ptr, ptr %to.slot
  %a = getelementptr i8, ptr %from, i64 %begin
  %b = getelementptr i8, ptr %to, i64 %begin
  %n = sub i64 %end, %begin
  call void @llvm.memcpy.p0.p0.i64(ptr %b, ptr %a, i64 %n, i1 false)
  ret void
}

; where an array begins, or so many times its length behind that
define internal i64 @place(ptr %rows, ptr %slots, i64 %k, i64 %times) alwaysinline {
  %k.offset = mul i64 %k, $array_words
  %row = getelementptr i64, ptr %rows, i64 %k.offset
  %slot = load i64, ptr %row
  %slot.at = getelementptr i64, ptr %slots, i64 %slot
  %begin = load i64, ptr %slot.at
  %bytes.at = getelementptr i64, ptr %row, i64 $array_bytes
  %bytes = load i64, ptr %bytes.at
  %far = mul i64 %bytes, %times
  %at = add i64 %begin, %far
  ret i64 %at
}

; a method of the C API: arguments are the number of threads and the arrays
define ptr @graphc_call(ptr %self, ptr %args, i64 %nargs) {
entry:
  %head = call ptr @PyLong_AsVoidPtr(ptr %self)
  %busy = load i64, ptr %head
  %idle = icmp eq i64 %busy, 0
  br i1 %idle, label %start, label %refuse
refuse:
  %r = call ptr @PyLong_FromLong(i64 $busy)
  ret ptr %r
start:
  %threads.arg = load ptr, ptr %args
  %nthreads = call i64 @PyLong_AsLong(ptr %threads.arg)
  %n.at = getelementptr i64, ptr %head, i64 $head_n_arrays
  %n = load i64, ptr %n.at
  %given = sub i64 %nargs, 1
  %enough = icmp eq i64 %given, %n
  %rows.at = getelementptr i64, ptr %head, i64 $head_arrays
  %rows = load ptr, ptr %rows.at
  %slots.at = getelementptr i64, ptr %head, i64 $head_slots
  %slots = load ptr, ptr %slots.at
  %type.at = getelementptr i64, ptr %head, i64 $head_type
  %type = load ptr, ptr %type.at
  br i1 %enough, label %each, label %misfit
each:
  %k = phi i64 [ 0, %start ], [ %k.next, %take ]
  %k.going = icmp slt i64 %k, %n
  br i1 %k.going, label %check, label %lone
check:
  %k.offset = mul i64 %k, $array_words
  %row = getelementptr i64, ptr %rows, i64 %k.offset
  %k.next = add i64 %k, 1
  %array.at = getelementptr ptr, ptr %args, i64 %k.next
  %array = load ptr, ptr %array.at
  %own.type.at = getelementptr ptr, ptr %array, i64 1
  %own.type = load ptr, ptr %own.type.at
  %is.array = icmp eq ptr %own.type, %type
  br i1 %is.array, label %look, label %misfit
look:
  %dtype.at = getelementptr i8, ptr %array, i64 $dtype
  %dtype = load i64, ptr %dtype.at
  %want.dtype.at = getelementptr i64, ptr %row, i64 $array_dtype
  %want.dtype = load i64, ptr %want.dtype.at
  %same.dtype = icmp eq i64 %dtype, %want.dtype
  %flags.at = getelementptr i8, ptr %array, i64 $flags
  %flags32 = load i32, ptr %flags.at
  %flags = zext i32 %flags32 to i64
  %want.flags.at = getelementptr i64, ptr %row, i64 $array_flags
  %want.flags = load i64, ptr %want.flags.at
  %has = and i64 %flags, %want.flags
  %same.flags = icmp eq i64 %has, %want.flags
  %ndim.at = getelementptr i8, ptr %array, i64 $ndim
  %ndim32 = load i32, ptr %ndim.at
  %ndim = zext i32 %ndim32 to i64
  %want.ndim.at = getelementptr i64, ptr %row, i64 $array_ndim
  %want.ndim = load i64, ptr %want.ndim.at
  %same.ndim = icmp eq i64 %ndim, %want.ndim
  %two = and i1 %same.dtype, %same.flags
  %three = and i1 %two, %same.ndim
  br i1 %three, label %sized, label %misfit
sized:
  %shape.at = getelementptr i8, ptr %array, i64 $shape
  %shape = load ptr, ptr %shape.at
  %want.shape.at = getelementptr i64, ptr %row, i64 $array_shape
  %want.shape = load ptr, ptr %want.shape.at
  br label %axis
axis:
  %d = phi i64 [ 0, %sized ], [ %d.next, %size ]
  %d.going = icmp slt i64 %d, %ndim
  br i1 %d.going, label %size, label %take
size:
  %d.next = add i64 %d, 1
  %size.at = getelementptr i64, ptr %shape, i64 %d
  %size.own = load i64, ptr %size.at
  %want.size.at = getelementptr i64, ptr %want.shape, i64 %d
  %want.size = load i64, ptr %want.size.at
  %same.size = icmp eq i64 %size.own, %want.size
  br i1 %same.size, label %axis, label %misfit
take:
  %data.at = getelementptr i8, ptr %array, i64 $data
  %data = load i64, ptr %data.at
  %instead.at = getelementptr i64, ptr %row, i64 $array_instead
  %instead = load i64, ptr %instead.at
  %full = icmp eq i64 %instead, 0
  %pointer = select i1 %full, i64 %data, i64 %instead
  %slot = load i64, ptr %row
  %slot.at = getelementptr i64, ptr %slots, i64 %slot
  store i64 %pointer, ptr %slot.at
  br label %each
lone:
  %apart.at = getelementptr i64, ptr %head, i64 $head_apart
  %apart = load ptr, ptr %apart.at
  %n.apart.at = getelementptr i64, ptr %head, i64 $head_n_apart
  %n.apart = load i64, ptr %n.apart.at
  %written.at = getelementptr i64, ptr %head, i64 $head_written
  %written = load ptr, ptr %written.at
  %n.written.at = getelementptr i64, ptr %head, i64 $head_n_written
  %n.written = load i64, ptr %n.written.at
  %begins.at = getelementptr i64, ptr %head, i64 $head_begins
  %begins = load ptr, ptr %begins.at
  %ends.at = getelementptr i64, ptr %head, i64 $head_ends
  %ends = load ptr, ptr %ends.at
  %both = call i64 @llvm.smin.i64(i64 %n.apart, i64 %n.written)
  %any.apart = icmp sgt i64 %both, 0
  br i1 %any.apart, label %each.written, label %walk
each.written:
  %x = phi i64 [ 0, %lone ], [ %x.next, %each.written ]
  %x.next = add i64 %x, 1
  %x.at = getelementptr i64, ptr %written, i64 %x
  %writer = load i64, ptr %x.at
  %x.begin = call i64 @place(ptr %rows, ptr %slots, i64 %writer, i64 0)
  %x.end = call i64 @place(ptr %rows, ptr %slots, i64 %writer, i64 1)
  %begin.at = getelementptr i64, ptr %begins, i64 %x
  store i64 %x.begin, ptr %begin.at
  %end.at = getelementptr i64, ptr %ends, i64 %x
  store i64 %x.end, ptr %end.at
  %x.more = icmp slt i64 %x.next, %n.written
  br i1 %x.more, label %each.written, label %each.apart
each.apart:
  %a = phi i64 [ 0, %each.written ], [ %a.next, %over ]
  %a.next = add i64 %a, 1
  %a.at = getelementptr i64, ptr %apart, i64 %a
  %reader = load i64, ptr %a.at
  %a.begin = call i64 @place(ptr %rows, ptr %slots, i64 %reader, i64 0)
  %a.end = call i64 @place(ptr %rows, ptr %slots, i64 %reader, i64 1)
  br label %meet
meet:                                             ; all of them: a loop without an exit runs in vectors
  %y = phi i64 [ 0, %each.apart ], [ %y.next, %meet ]
  %so.far = phi i1 [ false, %each.apart ], [ %shared, %meet ]
  %y.next = add i64 %y, 1
  %y.begin.at = getelementptr i64, ptr %begins, i64 %y
  %y.begin = load i64, ptr %y.begin.at
  %y.end.at = getelementptr i64, ptr %ends, i64 %y
  %y.end = load i64, ptr %y.end.at
  %before = icmp ult i64 %a.begin, %y.end
  %behind = icmp ult i64 %y.begin, %a.end
  %meets = and i1 %before, %behind
  %shared = or i1 %so.far, %meets
  %y.more = icmp slt i64 %y.next, %n.written
  br i1 %y.more, label %meet, label %met
met:
  %a.more = icmp slt i64 %a.next, %n.apart
  br i1 %shared, label %misfit, label %over
over:
  br i1 %a.more, label %each.apart, label %walk
misfit:
  %at = phi i64 [ 0, %start ], [ %k, %check ], [ %k, %look ], [ %k, %size ], [ %reader, %met ]
  %m = call ptr @PyLong_FromLong(i64 %at)
  ret ptr %m
walk:
  store i64 1, ptr %head
  %windows.at = getelementptr i64, ptr %head, i64 $head_windows
  %windows = load ptr, ptr %windows.at
  %n.windows.at = getelementptr i64, ptr %head, i64 $head_n_windows
  %n.windows = load i64, ptr %n.windows.at
  br label %each.window
each.window:
  %w = phi i64 [ 0, %walk ], [ %w.next, %window ]
  %w.going = icmp slt i64 %w, %n.windows
  br i1 %w.going, label %window, label %ready
window:
  %w.next = add i64 %w, 1
  %w.row = getelementptr [3 x i64], ptr %windows, i64 %w
  %w.slot = load i64, ptr %w.row
  %w.home.of = getelementptr i64, ptr %w.row, i64 1
  %w.home = load i64, ptr %w.home.of
  %w.bytes.of = getelementptr i64, ptr %w.row, i64 2
  %w.bytes = load i64, ptr %w.bytes.of
  %w.home.at = getelementptr i64, ptr %slots, i64 %w.home
  %w.home.pointer = load i64, ptr %w.home.at
  %w.pointer = add i64 %w.home.pointer, %w.bytes
  %w.at = getelementptr i64, ptr %slots, i64 %w.slot
  store i64 %w.pointer, ptr %w.at
  br label %each.window
ready:
  %steps.at = getelementptr i64, ptr %head, i64 $head_steps
  %steps = load ptr, ptr %steps.at
  %n.early.at = getelementptr i64, ptr %head, i64 $head_n_early
  %n.early = load i64, ptr %n.early.at
  %n.late.at = getelementptr i64, ptr %head, i64 $head_n_steps
  %n.late = load i64, ptr %n.late.at
  %checks.at = getelementptr i64, ptr %head, i64 $head_checks
  %checks = load ptr, ptr %checks.at
  %n.checks.at = getelementptr i64, ptr %head, i64 $head_n_checks
  %n.checks = load i64, ptr %n.checks.at
  %state = call ptr @PyEval_SaveThread()
  call void @graphc_run(ptr %steps, i64 %n.early, i64 %nthreads)
  br label %asked
asked:
  %c = phi i64 [ 0, %ready ], [ %c.next, %ask ]
  %c.going = icmp slt i64 %c, %n.checks
  br i1 %c.going, label %ask, label %rest
ask:
  %c.next = add i64 %c, 1
  %c.slot.at = getelementptr i64, ptr %checks, i64 %c
  %c.slot = load i64, ptr %c.slot.at
  %c.at = getelementptr ptr, ptr %slots, i64 %c.slot
  %c.value = load ptr, ptr %c.at
  %bit = load i8, ptr %c.value
  %holds = icmp ne i8 %bit, 0
  br i1 %holds, label %asked, label %finish
rest:
  %late.offset = mul i64 %n.early, $columns
  %late = getelementptr i64, ptr %steps, i64 %late.offset
  call void @graphc_run(ptr %late, i64 %n.late, i64 %nthreads)
  br label %finish
finish:
  %failed = phi i1 [ true, %ask ], [ false, %rest ]
  call void @PyEval_RestoreThread(ptr %state)
  store i64 0, ptr %head
  %which = add i64 %c, $failed
  %code = select i1 %failed, i64 %which, i64 $ok
  %out = call ptr @PyLong_FromLong(i64 %code)
  ret ptr %out
}
