# Good for whoever asks for this series of versions, up to this one; while the first number is 0, the second may break a
# caller.
set(PACKAGE_VERSION "<version>")
if("${PACKAGE_FIND_VERSION}." MATCHES "^<series>\\." AND NOT PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_VERSION VERSION_EQUAL PACKAGE_FIND_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
