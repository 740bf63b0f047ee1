//! `/v1/agent/host`: the machine this agent runs on.
//!
//! Owns: reading it from /proc and the system, in the shape that Consul's tools expect.
//! Never: fails as a whole: what cannot be read is named in `Errors` and left out.
//! Source: Consul HTTP API, "Retrieve host information"; proc(5), os-release(5).

use std::collections::BTreeMap;
use std::time::Duration;

use weft_proto::json::Json;

use super::call::Call;
use super::error::Failure;
use super::reply::Reply;

/// The file system whose usage is shown, as Consul does.
const DISK_PATH: &str = "/";
/// Processors shown; more make the answer longer than anybody reads.
const PROCESSORS_MAX: usize = 1_024;

pub(super) async fn show(call: Call) -> Result<Reply, Failure> {
    let wall = call.api.deps.clock.wall();
    let at = Duration::from_millis(wall.get()).as_nanos();
    // Files of /proc can take the kernel a while.
    let facts = tokio::task::spawn_blocking(move || Facts::read(wall.get() / 1_000));
    let facts = facts
        .await
        .map_err(|error| Failure::internal("agent.host", error.to_string()))?;
    Ok(Reply::written(|json| facts.write(json, at)))
}

/// What was read; `None`: see `errors`.
struct Facts {
    memory: Option<BTreeMap<String, u64>>,
    processors: Option<Vec<Processor>>,
    host: Option<Host>,
    disk: Option<Disk>,
    errors: Vec<String>,
}

impl Facts {
    fn read(now_seconds: u64) -> Self {
        let mut errors = Vec::new();
        let mut file = |path: &str| match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) => {
                errors.push(format!("{path}: {error}"));
                None
            }
        };
        let memory = file("/proc/meminfo").map(|text| memory(&text));
        let processors = file("/proc/cpuinfo").map(|text| processors(&text));
        let host = file("/proc/uptime").map(|uptime| Host::read(&uptime, now_seconds));
        let mounts = file("/proc/self/mounts").unwrap_or_default();
        let disk = match Disk::of(DISK_PATH, &mounts) {
            Ok(disk) => Some(disk),
            Err(error) => {
                errors.push(format!("{DISK_PATH}: {error}"));
                None
            }
        };
        Self {
            memory,
            processors,
            host,
            disk,
            errors,
        }
    }

    fn write(&self, json: &mut Json, at: u128) {
        json.object(|json| {
            match &self.memory {
                Some(memory) => write_memory(json.key("Memory"), memory),
                None => json.key("Memory").null(),
            }
            match &self.processors {
                Some(all) => json.key("CPU").list(all, write_processor),
                None => json.key("CPU").null(),
            }
            match &self.host {
                Some(host) => host.write(json.key("Host")),
                None => json.key("Host").null(),
            }
            match &self.disk {
                Some(disk) => disk.write(json.key("Disk")),
                None => json.key("Disk").null(),
            }
            json.key("CollectionTime").raw(&at.to_string());
            match self.errors.is_empty() {
                true => json.key("Errors").null(),
                false => json.key("Errors").strings(&self.errors),
            }
        });
    }
}

/// `Name: value kB` lines in bytes; those without a unit are counts.
fn memory(meminfo: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let mut words = value.split_whitespace();
        let value: u64 = words.next()?.parse().ok()?;
        let unit = if words.next() == Some("kB") { 1_024 } else { 1 };
        Some((name.to_owned(), value.saturating_mul(unit)))
    };
    meminfo.lines().filter_map(line).collect()
}

/// Consul's names and the kernel's; empty: what no Linux has.
const MEMORY: [(&str, &str); 35] = [
    ("total", "MemTotal"),
    ("available", "MemAvailable"),
    ("free", "MemFree"),
    ("active", "Active"),
    ("inactive", "Inactive"),
    ("wired", ""),
    ("laundry", ""),
    ("buffers", "Buffers"),
    ("cached", "Cached"),
    ("writeback", "Writeback"),
    ("dirty", "Dirty"),
    ("writebacktmp", "WritebackTmp"),
    ("shared", "Shmem"),
    ("slab", "Slab"),
    ("sreclaimable", "SReclaimable"),
    ("sunreclaim", "SUnreclaim"),
    ("pagetables", "PageTables"),
    ("swapcached", "SwapCached"),
    ("commitlimit", "CommitLimit"),
    ("committedas", "Committed_AS"),
    ("hightotal", "HighTotal"),
    ("highfree", "HighFree"),
    ("lowtotal", "LowTotal"),
    ("lowfree", "LowFree"),
    ("swaptotal", "SwapTotal"),
    ("swapfree", "SwapFree"),
    ("mapped", "Mapped"),
    ("vmalloctotal", "VmallocTotal"),
    ("vmallocused", "VmallocUsed"),
    ("vmallocchunk", "VmallocChunk"),
    ("hugepagestotal", "HugePages_Total"),
    ("hugepagesfree", "HugePages_Free"),
    ("hugepagesize", "Hugepagesize"),
    // Worked out of the others.
    ("used", ""),
    ("usedPercent", ""),
];

fn write_memory(json: &mut Json, memory: &BTreeMap<String, u64>) {
    let get = |name: &str| memory.get(name).copied().unwrap_or_default();
    let total = get("MemTotal");
    // What a process could still have does not count as used; old kernels do not say how much that is.
    let could_have = match memory.get("MemAvailable") {
        Some(available) => *available,
        None => get("MemFree") + get("Buffers") + get("Cached"),
    };
    let used = total.saturating_sub(could_have);
    json.object(|json| {
        for (name, kernels) in MEMORY {
            match name {
                "available" => json.key(name).number(could_have),
                "used" => json.key(name).number(used),
                "usedPercent" => json.key(name).raw(&percent(used, total)),
                _ => json.key(name).number(get(kernels)),
            }
        }
    });
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0".to_owned();
    }
    format!("{:.4}", part as f64 * 100.0 / whole as f64)
}

/// One processor's lines.
type Processor = BTreeMap<String, String>;

fn processors(cpuinfo: &str) -> Vec<Processor> {
    let blocks = cpuinfo.split("\n\n").map(|block| {
        let pairs = block.lines().filter_map(|line| line.split_once(':'));
        pairs
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect::<Processor>()
    });
    blocks
        .filter(|one| one.contains_key("processor"))
        .take(PROCESSORS_MAX)
        .collect()
}

fn write_processor(json: &mut Json, one: &Processor) {
    let text = |name: &str| one.get(name).map_or("", String::as_str);
    let number = |name: &str| -> u64 {
        let digits = text(name).split(['.', ' ']).next().unwrap_or_default();
        digits.parse().unwrap_or_default()
    };
    json.object(|json| {
        json.key("cpu").number(number("processor"));
        json.key("vendorId").string(text("vendor_id"));
        json.key("family").string(text("cpu family"));
        json.key("model").string(text("model"));
        json.key("stepping").number(number("stepping"));
        json.key("physicalId").string(text("physical id"));
        json.key("coreId").string(text("core id"));
        json.key("cores").number(1);
        json.key("modelName").string(text("model name"));
        json.key("mhz").number(number("cpu MHz"));
        // In KiB, as the kernel says it.
        json.key("cacheSize").number(number("cache size"));
        let flags = one.get("flags").or_else(|| one.get("Features"));
        json.key("flags")
            .strings(flags.map_or("", String::as_str).split_whitespace());
        json.key("microcode").string(text("microcode"));
    });
}

/// Where a machine's id stands, the best first; the last is another one after each boot.
const HOST_IDS: [&str; 3] = [
    "/sys/class/dmi/id/product_uuid",
    "/etc/machine-id",
    "/proc/sys/kernel/random/boot_id",
];

/// The id as UUID text; empty when the file holds none.
fn uuid_of(text: &str) -> String {
    uuid::Uuid::try_parse(text.trim()).map_or_else(|_| String::new(), |id| id.to_string())
}

struct Host {
    hostname: String,
    uptime: u64,
    boot_time: u64,
    processes: u64,
    /// `ID`, `ID_LIKE`, `VERSION_ID` of os-release.
    platform: BTreeMap<String, String>,
    kernel: String,
    machine: String,
    id: String,
    virtual_machine: bool,
}

impl Host {
    fn read(uptime: &str, now_seconds: u64) -> Self {
        let uptime = uptime.split('.').next().unwrap_or_default();
        let uptime: u64 = uptime.trim().parse().unwrap_or_default();
        let names = rustix::system::uname();
        let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
        // Each of these may be missing, as in a container; an empty text says so.
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let release = match read("/etc/os-release") {
            text if text.is_empty() => read("/usr/lib/os-release"),
            text => text,
        };
        let is_process = |entry: &std::fs::DirEntry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        };
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut platform = os_release(&release);
        // Debian's release file leaves out the point release.
        let debian = read("/etc/debian_version");
        if platform.get("ID").is_some_and(|id| id == "debian") && !debian.is_empty() {
            platform.insert("VERSION_ID".to_owned(), debian.trim().to_owned());
        }
        Self {
            hostname: text(names.nodename()),
            uptime,
            boot_time: now_seconds.saturating_sub(uptime),
            processes: entries.filter(is_process).count() as u64,
            platform,
            kernel: text(names.release()),
            machine: text(names.machine()),
            id: HOST_IDS
                .iter()
                .map(|path| uuid_of(&read(path)))
                .find(|id| !id.is_empty())
                .unwrap_or_default(),
            virtual_machine: read("/proc/cpuinfo").contains(" hypervisor"),
        }
    }

    fn write(&self, json: &mut Json) {
        let platform = |name: &str| self.platform.get(name).map_or("", String::as_str);
        let family = match platform("ID_LIKE").split(' ').next() {
            None | Some("") => platform("ID"),
            Some(family) => family,
        };
        json.object(|json| {
            json.key("hostname").string(&self.hostname);
            json.key("uptime").number(self.uptime);
            json.key("bootTime").number(self.boot_time);
            json.key("procs").number(self.processes);
            json.key("os").string(std::env::consts::OS);
            json.key("platform").string(platform("ID"));
            json.key("platformFamily").string(family);
            json.key("platformVersion").string(platform("VERSION_ID"));
            json.key("kernelVersion").string(&self.kernel);
            json.key("kernelArch").string(&self.machine);
            // Which hypervisor it is, the kernel does not say.
            json.key("virtualizationSystem").string("");
            let role = if self.virtual_machine { "guest" } else { "" };
            json.key("virtualizationRole").string(role);
            json.key("hostid").string(&self.id);
        });
    }
}

/// `NAME=value` or `NAME="value"` lines.
fn os_release(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.trim().to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

struct Disk {
    path: &'static str,
    kind: String,
    /// Bytes; `free` is what is left to everybody, not to root alone.
    total: u64,
    free: u64,
    used: u64,
    inodes: u64,
    inodes_free: u64,
}

impl Disk {
    fn of(path: &'static str, mounts: &str) -> rustix::io::Result<Self> {
        let found = rustix::fs::statvfs(path)?;
        let kind = mounts
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ').skip(1);
                (words.next() == Some(path)).then(|| words.next().unwrap_or_default())
            })
            // What was mounted last lies above.
            .next_back()
            .unwrap_or_default();
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Self {
            path,
            kind: kind.to_owned(),
            total: bytes(found.f_blocks),
            free: bytes(found.f_bavail),
            used: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
            inodes: found.f_files,
            inodes_free: found.f_ffree,
        })
    }

    fn write(&self, json: &mut Json) {
        let inodes_used = self.inodes.saturating_sub(self.inodes_free);
        json.object(|json| {
            json.key("path").string(self.path);
            json.key("fstype").string(&self.kind);
            json.key("total").number(self.total);
            json.key("free").number(self.free);
            json.key("used").number(self.used);
            json.key("usedPercent")
                .raw(&percent(self.used, self.used + self.free));
            json.key("inodesTotal").number(self.inodes);
            json.key("inodesUsed").number(inodes_used);
            json.key("inodesFree").number(self.inodes_free);
            json.key("inodesUsedPercent")
                .raw(&percent(inodes_used, self.inodes));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_understood() {
        let memory = memory("MemTotal: 100 kB\nMemAvailable:  40 kB\nHugePages_Total: 3\nbad\n");
        assert_eq!(memory["MemTotal"], 102_400);
        assert_eq!(memory["HugePages_Total"], 3);
        let mut json = Json::default();
        write_memory(&mut json, &memory);
        let shown: serde_json::Value = serde_json::from_slice(&json.into_bytes()).unwrap();
        assert_eq!(
            (&shown["used"], &shown["usedPercent"]),
            (&61_440.into(), &60.0.into())
        );
        let two = "processor\t: 0\nmodel name\t: One\ncpu MHz\t: 2600.004\nflags\t: a b\n\nprocessor\t: 1\n\nHardware: x\n";
        let found = processors(two);
        assert_eq!(found.len(), 2);
        let mut json = Json::default();
        write_processor(&mut json, &found[0]);
        let shown: serde_json::Value = serde_json::from_slice(&json.into_bytes()).unwrap();
        assert_eq!(shown["mhz"], 2_600);
        assert_eq!(shown["flags"], serde_json::json!(["a", "b"]));
        let release = os_release("ID=debian\nVERSION_ID=\"12\"\n");
        assert_eq!((&*release["ID"], &*release["VERSION_ID"]), ("debian", "12"));
    }

    #[test]
    fn ids_are_shown_in_one_form() {
        let id = "6d1219c7-c4c5-404a-aa1f-6d2a48adfda4";
        for text in [
            "6D1219C7-C4C5-404A-AA1F-6D2A48ADFDA4\n",
            "6d1219c7c4c5404aaa1f6d2a48adfda4\n",
        ] {
            assert_eq!(uuid_of(text), id);
        }
        assert_eq!(uuid_of("uninitialized\n"), "");
    }

    #[test]
    fn this_machine_can_be_read() {
        let facts = Facts::read(2_000_000_000);
        assert_eq!(facts.errors, [""; 0]);
        let host = facts.host.unwrap();
        assert!(host.uptime > 0 && host.boot_time < 2_000_000_000 && host.processes > 0);
        let disk = facts.disk.unwrap();
        assert!(disk.total >= disk.used + disk.free, "root keeps some");
        assert!(!facts.processors.unwrap().is_empty());
        assert!(facts.memory.unwrap()["MemTotal"] > 0);
    }

    #[test]
    fn what_is_missing_is_named() {
        let facts = Facts {
            memory: None,
            processors: None,
            host: None,
            disk: None,
            errors: vec!["/proc/meminfo: no".to_owned()],
        };
        let mut json = Json::default();
        facts.write(&mut json, 7);
        assert_eq!(
            String::from_utf8(json.into_bytes()).unwrap(),
            r#"{"Memory":null,"CPU":null,"Host":null,"Disk":null,"CollectionTime":7,"Errors":["/proc/meminfo: no"]}"#
        );
    }
}
