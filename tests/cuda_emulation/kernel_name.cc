#include "kernel_name.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

namespace dlf::emulation {
namespace {

template <typename T>
std::vector<T> read(std::ifstream& file, uint64_t offset, uint64_t bytes) {
  std::vector<T> items(bytes / sizeof(T));
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(reinterpret_cast<char*>(items.data()), static_cast<std::streamsize>(items.size() * sizeof(T)));
  return items;
}

// Reads the name from the file's symbol table: kernels are not exported, so the dynamic linker does not know them.
std::string symbol_at(const char* path, uint64_t address) {
  std::ifstream file(path, std::ios::binary);
  const auto header = read<ElfW(Ehdr)>(file, 0, sizeof(ElfW(Ehdr)));
  if (!file || header[0].e_shentsize != sizeof(ElfW(Shdr))) {
    return {};
  }
  const auto sections = read<ElfW(Shdr)>(file, header[0].e_shoff, header[0].e_shnum * sizeof(ElfW(Shdr)));
  for (const ElfW(Shdr) & section : sections) {
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= sections.size()) {
      continue;
    }
    const ElfW(Shdr) & strings = sections[section.sh_link];
    const auto names = read<char>(file, strings.sh_offset, strings.sh_size);
    for (const ElfW(Sym) & symbol : read<ElfW(Sym)>(file, section.sh_offset, section.sh_size)) {
      if (file && symbol.st_value == address && symbol.st_name < names.size() && (symbol.st_info & 0xf) == STT_FUNC) {
        return names.data() + symbol.st_name;
      }
    }
  }
  return {};
}

}  // namespace

std::string kernel_name(const void* function) {
  Dl_info info = {};
  link_map* map = nullptr;
  std::string symbol;
  if (dladdr1(function, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) != 0 && map != nullptr) {
    // The program itself has no name in the link map.
    const char* path = map->l_name != nullptr && map->l_name[0] != '\0' ? map->l_name : "/proc/self/exe";
    symbol = symbol_at(path, reinterpret_cast<uint64_t>(function) - map->l_addr);
  }
  if (symbol.empty()) {
    char address[32];
    std::snprintf(address, sizeof(address), "at %p", function);
    return address;
  }
  int status = 0;
  char* readable = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? readable : symbol;
  std::free(readable);
  return name;
}

}  // namespace dlf::emulation
