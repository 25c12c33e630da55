// Named in ProcessGroupGloo.hpp; nothing of it is used by the shim.
#pragma once
