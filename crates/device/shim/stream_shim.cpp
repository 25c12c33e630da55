// Streams of libtorch, through the interface of c10 that its CUDA half implements once it is loaded: no CUDA headers and no
// CUDA libraries are needed here.

#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstddef>
#include <cstring>
#include <exception>

namespace {

void tell(char* reason, size_t size, const char* text) {
  if (size == 0) return;
  std::strncpy(reason, text, size - 1);
  reason[size - 1] = '\0';
}

}  // namespace

// Has this thread compute on a stream of high priority of GPU `index` from now on. 0, or else 1 with the reason.
extern "C" int crescendo_high_priority_stream(int index, char* reason, size_t size) noexcept {
  constexpr auto kCuda = c10::DeviceType::CUDA;
  try {
    if (!c10::impl::hasDeviceGuardImpl(kCuda)) {
      tell(reason, size, "libtorch's CUDA half is not loaded");
      return 1;
    }
    const auto* guard = c10::impl::getDeviceGuardImpl(kCuda);
    if (index < 0 || index >= guard->deviceCount()) {
      tell(reason, size, "there is no such GPU");
      return 1;
    }
    const c10::Device device(kCuda, static_cast<c10::DeviceIndex>(index));
    guard->setDevice(device);
    guard->exchangeStream(guard->getStreamFromGlobalPool(device, /*isHighPriority=*/true));
    return 0;
  } catch (const std::exception& error) {
    tell(reason, size, error.what());
    return 1;
  } catch (...) {
    tell(reason, size, "an exception of an unknown kind");
    return 1;
  }
}
