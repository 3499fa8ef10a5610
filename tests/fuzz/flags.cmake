# Instrumented as libFuzzer wants it, as far as g++ does that, under AddressSanitizer and UBSan; or so that gcov counts lines.
if(MFMD_SANITIZE STREQUAL "fuzz")
  set(instrumented -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
  add_compile_options(${instrumented} -fsanitize-coverage=trace-pc,trace-cmp)
  # What it does depends on no byte that it is given, and it would take most of the time.
  set_source_files_properties(csrc/sha256.cpp PROPERTIES COMPILE_OPTIONS "-O2;-fno-sanitize=all;-fno-sanitize-coverage=trace-pc,trace-cmp")
else()
  set(instrumented --coverage -fprofile-update=atomic)
  add_compile_options(${instrumented})
endif()
add_link_options(${instrumented})
