#pragma once

#include <c10/util/Exception.h>

#include <string>
#include <utility>

namespace dlf {

// Error of an option with an impossible value. In Python it is a ValueError whose `field` is the option's name.
class OptionError : public c10::ValueError {
 public:
  OptionError(std::string field, std::string message)
      : c10::ValueError({__func__, __FILE__, __LINE__}, std::move(message)), field_(std::move(field)) {}

  const std::string& field() const { return field_; }

 private:
  std::string field_;
};

// Throws an OptionError unless `ok`. The message is the option's name and these parts.
template <typename... Parts>
void check_option(bool ok, const char* field, const Parts&... parts) {
  if (!ok) {
    throw OptionError(field, c10::str(field, parts...));
  }
}

}  // namespace dlf
