//! One machine.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::{Console, Output, between_marks};
use crate::{Card, firmware};

/// From power-on to a shell: a Pi emulated on a busy host. What cannot boot says so much sooner.
const BOOT: Duration = Duration::from_secs(900);
/// From `reboot` to off.
const DOWN: Duration = Duration::from_secs(180);

/// What kind of machine plays the board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Machine {
    /// QEMU's generic 64-bit machine: quick, with none of a Pi's hardware.
    Virt,
    /// QEMU's Pi, as the board's config says.
    Board,
}

/// What the machine's network is.
#[derive(Clone, Debug)]
pub enum Net {
    /// QEMU's own: DHCP, the host's network, and ports of the host for the API and SSH.
    User,
    /// A [`crate::Hub`]; the number makes the hardware address.
    Hub(PathBuf, u8),
}

/// One machine with a card in it.
#[derive(Debug)]
pub struct Guest {
    name: String,
    /// Its card.
    pub card: Card,
    machine: Machine,
    board: toml::Table,
    net: Net,
    /// Where to note what is written to the card, from the next power-on.
    record: Option<PathBuf>,
    api: u16,
    ssh: u16,
    clock: Option<&'static str>,
    running: Option<Running>,
    commands: u64,
}

#[derive(Debug)]
struct Running {
    child: Child,
    keyboard: ChildStdin,
    console: Console,
    since: Instant,
}

impl Guest {
    /// A machine that is off.
    pub fn new(name: &str, board: &str, machine: Machine, net: Net) -> Result<Self> {
        Self::with_card(name, board, machine, net, Card::new(board)?)
    }

    /// A machine that is off, with this card in it.
    pub fn with_card(name: &str, board: &str, machine: Machine, net: Net, card: Card) -> Result<Self> {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../board-configs/{board}.toml"));
        let board_config = fs::read_to_string(&config).with_context(|| config.display().to_string())?;
        Ok(Self {
            name: name.to_owned(),
            card,
            machine,
            board: board_config.parse()?,
            net,
            api: free_port()?,
            ssh: free_port()?,
            clock: None,
            record: None,
            running: None,
            commands: 0,
        })
    }

    /// The host's port that is the guest's 6443.
    pub fn api_port(&self) -> u16 {
        self.api
    }

    /// The host's port that is the guest's 22.
    pub fn ssh_port(&self) -> u16 {
        self.ssh
    }

    /// What its clock says at every power-on, as in `2020-01-01T00:00:00`: a Pi has none that runs on.
    pub fn set_clock(&mut self, time: &'static str) {
        self.clock = Some(time);
    }

    /// Notes what is written to the card in a file from the next power-on (a virt machine only); see [`crate::Writes`].
    pub fn record(&mut self, log: Option<PathBuf>) -> Result<()> {
        // QEMU makes no file, it opens one.
        log.as_ref().map(File::create).transpose().context("the log of writes")?;
        self.record = log;
        Ok(())
    }

    /// Switches it on.
    pub fn power_on(&mut self) -> Result<()> {
        let qemu: toml::Table =
            self.board.get("qemu").and_then(|qemu| qemu.as_table()).cloned().unwrap_or_default();
        let dtb = (self.machine == Machine::Board).then(|| qemu["dtb"].as_str().unwrap_or_default());
        let loaded = firmware::load(&self.card, dtb)?;
        let mut command = Command::new("nice");
        command.args(["-n", "5", self.program()]);
        match self.machine {
            Machine::Virt => self.virt(&mut command, &loaded),
            Machine::Board => self.pi(&mut command, &qemu, &loaded),
        }
        command.arg("-kernel").arg(&loaded.kernel);
        if let Some(initramfs) = &loaded.initramfs {
            command.arg("-initrd").arg(initramfs);
        }
        command.args(["-display", "none", "-monitor", "none", "-no-reboot"]);
        if let Some(time) = self.clock {
            command.args(["-rtc", &format!("base={time}")]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let log = crate::out().join("qemu").join(format!("{}.log", self.name));
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| log.display().to_string())?;
        command.stderr(log.try_clone()?);
        let mut child = command.spawn().context("QEMU: hack/setup --qemu")?;
        let console = Console::default();
        console.follow(child.stdout.take().context("a pipe")?, log);
        let keyboard = child.stdin.take().context("a pipe")?;
        self.running = Some(Running { child, keyboard, console, since: Instant::now() });
        Ok(())
    }

    fn is_32_bit(&self) -> bool {
        self.board.get("arch").and_then(|arch| arch.as_str()) == Some("armhf")
    }

    fn program(&self) -> &'static str {
        // It runs 32-bit machines as well.
        "qemu-system-aarch64"
    }

    /// What ends in the network device `n0`.
    fn netdev(&self) -> String {
        match &self.net {
            Net::User => format!(
                "user,id=n0,hostfwd=tcp:127.0.0.1:{}-:6443,hostfwd=tcp:127.0.0.1:{}-:22",
                self.api, self.ssh
            ),
            Net::Hub(path, _) => {
                format!("stream,id=n0,server=off,addr.type=unix,addr.path={}", path.display())
            }
        }
    }

    fn mac(&self) -> String {
        let last = match self.net {
            Net::User => 0x10,
            Net::Hub(_, number) => number,
        };
        // A usb-net of QEMU's has 40 in front whatever is asked for.
        format!("40:54:00:12:34:{last:02x}")
    }

    fn virt(&self, command: &mut Command, loaded: &firmware::Loaded) {
        let (machine, cpu) =
            if self.is_32_bit() { ("virt,highmem=off", "cortex-a15") } else { ("virt", "cortex-a53") };
        command.args(["-M", machine, "-cpu", cpu, "-smp", "2", "-m", "1024"]);
        let card = self.card.path();
        match &self.record {
            None => {
                command.args(["-drive", &format!("if=none,id=card,format=raw,file={}", card.display())]);
            }
            Some(log) => {
                for (name, driver, below) in [
                    ("file", "file", format!("filename={}", card.display())),
                    ("log", "file", format!("filename={}", log.display())),
                    ("raw", "raw", "file=file".to_owned()),
                    ("card", "blklogwrites", "file=raw,log=log".to_owned()),
                ] {
                    command.args(["-blockdev", &format!("driver={driver},node-name={name},{below}")]);
                }
            }
        }
        command.args(["-device", "virtio-blk-device,drive=card"]);
        command.args(["-netdev", &self.netdev()]);
        command.args(["-device", &format!("virtio-net-device,netdev=n0,mac={}", self.mac())]);
        command.args(["-device", "virtio-rng-device", "-serial", "stdio"]);
        if !self.is_32_bit() {
            command.args(["-device", "i6300esb", "-action", "watchdog=reset"]);
        }
        // On a busy host a guest may not run for longer than a Pi's watchdog counts.
        let words = "systemd.watchdog_sec=120 console=ttyAMA0,115200";
        command.args(["-append", &firmware::with_console(&loaded.cmdline, words)]);
    }

    fn pi(&self, command: &mut Command, qemu: &toml::Table, loaded: &firmware::Loaded) {
        command.args(["-M", qemu["machine"].as_str().unwrap_or_default()]);
        if let Some(dtb) = &loaded.dtb {
            command.arg("-dtb").arg(dtb);
        }
        command.args(["-drive", &format!("if=sd,format=raw,file={}", self.card.path().display())]);
        command.arg("-usb");
        command.args(["-netdev", &self.netdev()]);
        command.args(["-device", &format!("usb-net,netdev=n0,mac={}", self.mac())]);
        let index = qemu.get("serial").and_then(|serial| serial.as_integer()).unwrap_or(0);
        for _ in 0..index {
            command.args(["-serial", "null"]);
        }
        // QEMU's Pi resets at once when its watchdog is started, instead of counting.
        let cmdline = format!("{} systemd.watchdog_sec=0", loaded.cmdline);
        command.args(["-serial", "stdio", "-append", &cmdline]);
    }

    fn running(&mut self) -> Result<&mut Running> {
        let name = self.name.clone();
        self.running.as_mut().with_context(|| format!("{name} is off"))
    }

    /// Waits for the shell on the console, and makes it quiet. Gives the time since power-on.
    pub fn shell(&mut self) -> Result<Duration> {
        let running = self.running()?;
        running.console.wait(0, BOOT, "a shell on the console", |text| text.find(":~# "))?;
        let took = running.since.elapsed();
        self.run(
            "export TERM=dumb PS1= SYSTEMD_PAGER= SYSTEMD_COLORS=0; stty -echo cols 250",
            Duration::from_secs(60),
        )?;
        Ok(took)
    }

    /// Waits for a text on the console, from power-on.
    pub fn said(&mut self, text: &str, limit: Duration) -> Result<()> {
        self.running()?.console.wait(0, limit, text, |said| said.find(text).map(drop))
    }

    /// Runs a command line in the shell, whatever its exit code.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        self.commands += 1;
        let number = self.commands;
        let running = self.running()?;
        let from = running.console.position();
        let line = format!("echo '<be''gin-{number}>'; {command}\necho \"<e\"\"nd-{number}:$?>\"\n");
        running.keyboard.write_all(line.as_bytes()).context("typing")?;
        running.keyboard.flush()?;
        running.console.wait(from, limit, command, |text| between_marks(text, number))
    }

    /// Waits until the machine is off by itself, and switches it on again: what a board does by itself. Gives the time
    /// to the shell.
    pub fn back(&mut self, limit: Duration) -> Result<Duration> {
        self.wait_off_for(limit)?;
        self.power_on()?;
        self.shell()
    }

    /// Runs a command line that must work; gives what it said.
    pub fn ok(&mut self, command: &str, limit: Duration) -> Result<String> {
        let output = self.run(command, limit)?;
        if output.code != 0 {
            bail!("{}: {command}: exit code {}: {}", self.name, output.code, output.text);
        }
        Ok(output.text)
    }

    /// Writes a file, typing it.
    pub fn put(&mut self, path: &str, text: &str) -> Result<()> {
        let minute = Duration::from_secs(60);
        self.ok(&format!("rm -f {path} && touch {path} && chmod 600 {path}"), minute)?;
        for line in text.lines() {
            // A terminal takes no line longer than 4095.
            for part in line.as_bytes().chunks(2000) {
                self.ok(&format!("printf %s '{}' >> {path}", String::from_utf8_lossy(part)), minute)?;
            }
            self.ok(&format!("echo >> {path}"), minute)?;
        }
        Ok(())
    }

    /// Runs a command line until it works and says what is wanted.
    pub fn until(&mut self, command: &str, wanted: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let output = self.run(command, limit)?;
            if output.code == 0 && output.text.contains(wanted) {
                return Ok(output.text);
            }
            if Instant::now() > deadline {
                bail!("{}: {command} does not say {wanted:?}: {}", self.name, output.text);
            }
            // A guest is slow and alone with its console: a look a second is what it can bear.
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Waits until the machine is off by itself (QEMU ends where a board would start anew).
    pub fn wait_off(&mut self) -> Result<()> {
        self.wait_off_for(DOWN)
    }

    fn wait_off_for(&mut self, limit: Duration) -> Result<()> {
        let mut running = self.running.take().context("it is off")?;
        let closed = running.console.wait_closed(limit);
        if closed.is_err() {
            let _ = running.child.kill();
        }
        running.child.wait()?;
        closed
    }

    /// Goes down by command, and stays off.
    pub fn down(&mut self) -> Result<()> {
        self.running()?.keyboard.write_all(b"reboot\n")?;
        self.wait_off()
    }

    /// Reboots by command, up to the shell.
    pub fn reboot(&mut self) -> Result<Duration> {
        self.down()?;
        self.power_on()?;
        self.shell()
    }

    /// Pulls the plug.
    pub fn power_off(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

/// Free a moment ago: nobody else is so quick.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.power_off();
    }
}
