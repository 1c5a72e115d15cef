"""install.sh where Python has to come from packages, by apt-get and by dnf, and where Python is 3.9.

No mirror of Rocky Linux is to be had: dnf is Debian's, with a repository made here. Everything else about it is real:
dnf resolves and installs, rpm keeps its database, and the package's files are what makes Python usable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Callable

import pytest
from conftest import REPOSITORY, missing
from installed import CHECKOUT, Host

pytestmark = [pytest.mark.booted, pytest.mark.timeout(300)]

Boot = Callable[..., AbstractContextManager[Host]]
VENV_PACKAGES = ("python3-venv", "python3-distutils", "python3-lib2to3")

OS_RELEASE = """\
NAME="Rocky Linux"
VERSION="8.10 (Green Obsidian)"
ID="rocky"
ID_LIKE="rhel centos fedora"
VERSION_ID="8.10"
PLATFORM_ID="platform:el8"
PRETTY_NAME="Rocky Linux 8.10 (Green Obsidian)"
"""

# A package that brings what Debian has in python3.11-venv, under the name that Rocky 8's Python has.
SPEC = """\
Name: python3.12
Version: 3.12.0
Release: 1
Summary: Stand-in for Rocky's package
License: PSF
AutoReqProv: no
BuildArch: noarch
%description
Makes this machine's Python usable.
%install
mkdir -p %{{buildroot}}{ensurepip} %{{buildroot}}/usr/bin
cp -R {source}/. %{{buildroot}}{ensurepip}
ln -s {python} %{{buildroot}}/usr/bin/python3.12
%files
{ensurepip}
/usr/bin/python3.12
"""


def output(*command: str, cwd: Path = REPOSITORY) -> str:
    return subprocess.run(
        command, cwd=cwd, check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


@pytest.fixture(scope="module")
def ensurepip() -> Path:
    """The folder of the system Python's module that makes environments; where it is missing no environment is made."""
    found = output("/usr/bin/python3", "-c", "import ensurepip; print(ensurepip.__path__[0])")
    return Path(found)


# -- apt ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apt_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat repository with the packages that make Debian's Python able to make environments."""
    folder = tmp_path_factory.mktemp("apt")
    folder.chmod(0o755)
    if not shutil.which("dpkg-scanpackages"):
        missing("dpkg-dev")
    version = output(
        "/usr/bin/python3", "-c", "import sys; print('python3.%d' % sys.version_info[1])"
    )
    (folder / "partial").mkdir()
    # With all that they need in a newer version than is installed here.
    output(
        "apt-get", "-o", f"Dir::Cache::archives={folder}", "-o", "APT::Sandbox::User=root", "--quiet", "--yes",
        "--download-only", "--reinstall", "install", "python3-venv", f"{version}-venv", "python3-pip-whl",
        "python3-setuptools-whl",
    )  # fmt: skip
    (folder / "Packages").write_text(
        output("dpkg-scanpackages", "--multiversion", ".", cwd=folder) + "\n"
    )
    return folder


def test_apt_get_brings_what_python_lacks(
    booted_host: Boot, apt_repository: Path, ensurepip: Path
) -> None:
    """Without python3-venv install.sh gets it by apt-get; `--uninstall --purge` takes away what it brought."""
    with booted_host() as host:
        host.copy(apt_repository, "/srv/apt")
        host.shell(
            "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; "
            "echo 'deb [trusted=yes] file:/srv/apt ./' > /etc/apt/sources.list; "
            "dpkg --purge --force-depends $(dpkg-query -W -f '${Package}\\n' 'python3*-venv' python3-pip-whl "
            "python3-setuptools-whl); apt-get -qq update"
        )
        before = host.shell("dpkg-query -W -f '${Package} ${Status}\\n'")
        assert host.run("test", "-e", str(ensurepip), check=False).returncode != 0
        said = host.install().stdout
        assert "new packages: " in said
        assert "python3-venv" in said
        host.wait_until_ready()
        host.run("/opt/ollama-metrics/install.sh", "--uninstall", "--purge", timeout=120)
        assert host.shell("dpkg-query -W -f '${Package} ${Status}\\n'") == before


def test_apt_get_without_a_mirror(booted_host: Boot) -> None:
    """Where apt-get reaches nothing, the one sentence says that no Python will do; nothing is left behind."""
    with booted_host() as host:
        host.shell(
            "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; "
            "dpkg --purge --force-depends $(dpkg-query -W -f '${Package}\\n' 'python3*-venv')"
        )
        process = host.install(check=False)
        assert process.returncode == 1
        assert "no Python will do" in process.stderr
        assert host.run("test", "-e", "/opt/ollama-metrics", check=False).returncode != 0


# -- dnf ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dnf_repository(tmp_path_factory: pytest.TempPathFactory, ensurepip: Path) -> Path:
    """A repository with one package, python3.12."""
    for program in ("dnf", "rpmbuild", "createrepo_c"):
        if not shutil.which(program):
            missing(program)
    folder = tmp_path_factory.mktemp("dnf")
    folder.chmod(0o755)
    spec = folder / "python.spec"
    python = os.path.realpath("/usr/bin/python3")
    spec.write_text(SPEC.format(ensurepip=ensurepip, source=ensurepip, python=python))
    output(
        "rpmbuild",
        "-bb",
        "--quiet",
        "--define",
        f"_rpmdir {folder}",
        "--define",
        f"_topdir {folder}/top",
        str(spec),
    )
    output("createrepo_c", "--quiet", str(folder))
    return folder


@pytest.fixture
def rocky(booted_host: Boot, dnf_repository: Path, ensurepip: Path) -> Iterator[Host]:
    """A machine that passes for Rocky Linux 8: dnf and rpm, no apt and dpkg, a Python that makes no environments."""
    hidden = ("/usr/bin/apt-get", "/usr/bin/dpkg", "/usr/bin/dpkg-query", str(ensurepip))
    with booted_host(hide=hidden) as host:
        host.copy(dnf_repository, "/srv/dnf")
        host.write("/etc/os-release", OS_RELEASE)
        host.write(
            "/etc/yum.repos.d/local.repo",
            "[local]\nname=local\nbaseurl=file:///srv/dnf\nenabled=1\ngpgcheck=0\n",
        )
        yield host


def test_dnf_brings_python(rocky: Host) -> None:
    """Without a Python that will do install.sh gets one by dnf and runs on it; `--purge` takes it away again."""
    said = rocky.install().stdout
    assert "new packages: python3.12" in said
    assert "/usr/bin/python3.12" in said
    rocky.wait_until_ready()
    assert rocky.metrics()["status"] == "ok"
    assert rocky.shell("rpm -qa --queryformat '%{NAME}\\n'") == "python3.12"
    kept = rocky.run("/opt/ollama-metrics/install.sh", "--uninstall", timeout=120).stdout
    assert "rpm --erase python3.12" in kept
    rocky.shell("rpm --erase python3.12")
    rocky.install()
    rocky.run("/opt/ollama-metrics/install.sh", "--uninstall", "--purge", timeout=120)
    assert rocky.shell("rpm -qa") == ""
    assert rocky.run("test", "-e", "/usr/bin/python3.12", check=False).returncode != 0


def test_dnf_without_a_repository(rocky: Host) -> None:
    """Where dnf has nothing to offer the one sentence says so; nothing is left behind."""
    rocky.shell("rm /etc/yum.repos.d/local.repo")
    process = rocky.install(check=False)
    assert process.returncode == 1
    assert "no Python will do" in process.stderr
    assert rocky.run("test", "-e", "/opt/ollama-metrics", check=False).returncode != 0


def test_what_selinux_and_firewalld_are_told(rocky: Host) -> None:
    """With SELinux on, labels are restored; --allow-from adds firewalld's rule, and uninstalling takes it away.

    Neither can run here: these stand-ins write down how they were called, and firewall-cmd keeps rules as the real
    one does.
    """
    rocky.write("/usr/sbin/selinuxenabled", "#!/bin/sh\nexit 0\n")
    rocky.write("/usr/sbin/restorecon", '#!/bin/sh\necho "restorecon $*" >> /srv/calls\n')
    rocky.write("/usr/bin/firewall-cmd", FIREWALL_CMD)
    rocky.shell("chmod 755 /usr/sbin/selinuxenabled /usr/sbin/restorecon /usr/bin/firewall-cmd")
    rocky.install("--allow-from", "192.0.2.10", "--allow-from", "2001:db8::/32")
    calls = rocky.read("/srv/calls")
    assert "restorecon -R /opt/ollama-metrics" in calls
    for rules in ("runtime", "permanent"):
        text = rocky.read(f"/srv/rules.{rules}")
        assert (
            'rule family="ipv4" source address="192.0.2.10" port port="11435" protocol="tcp" accept'
            in text
        )
        assert (
            'rule family="ipv6" source address="2001:db8::/32" port port="11435" protocol="tcp" accept'
            in text
        )
    rocky.run(f"{CHECKOUT}/install.sh", "--uninstall", timeout=120)
    for rules in ("runtime", "permanent"):
        assert rocky.read(f"/srv/rules.{rules}") == ""


# firewall-cmd(1): --state, --permanent, --query-rich-rule, --add-rich-rule, --remove-rich-rule.
FIREWALL_CMD = r"""#!/bin/sh
rules=/srv/rules.runtime
touch /srv/rules.runtime /srv/rules.permanent
for argument; do
    case $argument in
        --permanent) rules=/srv/rules.permanent ;;
        --state) echo running; exit 0 ;;
        --query-rich-rule=*) grep -Fxq -e "${argument#*=}" $rules; exit ;;
        --add-rich-rule=*) grep -Fxq -e "${argument#*=}" $rules || echo "${argument#*=}" >> $rules; echo success ;;
        --remove-rich-rule=*) grep -Fxv -e "${argument#*=}" $rules > $rules.new; mv $rules.new $rules; echo success ;;
    esac
done
"""


# -- Python 3.9 --------------------------------------------------------------------------------------------------------


def test_on_python_39(booted_host: Boot) -> None:
    """The same installation on Debian 11: systemd 247 and CPython 3.9, which is Rocky Linux 9's."""
    root = Path(os.environ.get("ROOTS") or REPOSITORY / ".roots") / "bullseye"
    if not (root / "lib/systemd/systemd").exists():
        missing("a root with Python 3.9 (make test-all makes it)")
    with booted_host(root=root) as host:
        assert host.shell("python3 -c 'import sys; print(sys.version_info[:2])'") == "(3, 9)"
        host.install("--window", "20")
        assert host.shell("systemctl is-active ollama-metrics") == "active"
        assert host.shell(f"ps -o user= -p {host.pid}") == "ollama"
        document = host.metrics()
        assert document["status"] == "ok"
        assert document["window_seconds"] == 20
        assert document["agent"]["python"].startswith("3.9.")
        with host.polled() as polled:
            host.renew(lambda: host.shell("systemctl reload ollama-metrics"))
            host.renew(lambda: host.install())
        assert polled.result["failed"] == []
        before = host.pid
        host.shell(f"kill -KILL {before}")
        host.wait_for_another_process(before)
        host.run("/opt/ollama-metrics/install.sh", "--uninstall", "--purge", timeout=120)
        assert host.run("test", "-e", "/opt/ollama-metrics", check=False).returncode != 0
        assert host.run("id", "ollama", check=False).returncode != 0
