# The library as a target: target_link_libraries(program fastopt::fastopt).
if(NOT TARGET fastopt::fastopt)
  get_filename_component(_fastopt "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
  add_library(fastopt::fastopt SHARED IMPORTED)
  set_target_properties(fastopt::fastopt PROPERTIES
    IMPORTED_LOCATION "${_fastopt}/lib/<library>"
    INTERFACE_INCLUDE_DIRECTORIES "${_fastopt}/include")
  unset(_fastopt)
endif()
