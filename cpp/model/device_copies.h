#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>

namespace dlf {

// Copies of something immutable on several devices. All who ask for the one on a device share it; the last of them
// frees it.
template <class T>
class DeviceCopies {
 public:
  // `make` makes the copy if nobody has one.
  std::shared_ptr<const T> get(int device, const std::function<std::shared_ptr<const T>()>& make) {
    const std::lock_guard lock(mutex_);
    std::weak_ptr<const T>& known = known_[device];
    std::shared_ptr<const T> copy = known.lock();
    if (copy == nullptr) {
      copy = make();
      known = copy;
    }
    return copy;
  }

  bool has(int device) const {
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(device);
    return found != known_.end() && !found->second.expired();
  }

 private:
  mutable std::mutex mutex_;
  std::map<int, std::weak_ptr<const T>> known_;
};

}  // namespace dlf
