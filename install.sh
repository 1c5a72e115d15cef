#!/usr/bin/env bash
#
# Installs ollama-metrics on this host, upgrades it, or removes it: `./install.sh --help`.
#
# What it makes, and nothing besides:
#
#   /opt/ollama-metrics            each version in a virtual environment of its own; `current` is a
#                                  link to one of them, and an upgrade is one rename of that link
#   /etc/ollama-metrics            the settings; what you changed in there is never overwritten
#   /etc/systemd/system            ollama-metrics.service and ollama-metrics.socket
#   /usr/local/bin/ollama-metrics  the command, a link
#   user and group ollama          as Ollama's own installer makes them, if it has not
#   packages                       Python, only where there is none that will do, by dnf or apt-get
#   with --allow-from              rules in firewalld
#   with --front nginx             nginx on Ollama's port, Ollama itself on 127.0.0.1:11436
#
# How it leaves nothing half-done: a change is noted in a journal before it is made, and each kind
# of change has a function undo_KIND. A run that fails undoes what it noted, from the end;
# --uninstall undoes what all runs noted; what a power cut left is undone by the next run.
#
# Needs bash 4.4, coreutils, util-linux and systemd 239: what Rocky Linux 8 has.

set -Eeuo pipefail
shopt -s inherit_errexit
umask 022

readonly prefix=/opt/ollama-metrics
readonly work=$prefix/work # gone when this script ends
readonly config=/etc/ollama-metrics/environment
readonly units=/etc/systemd/system service=ollama-metrics.service socket=ollama-metrics.socket
readonly link=/usr/local/bin/ollama-metrics
readonly state=/var/lib/ollama-metrics
readonly sources=(pyproject.toml README.md LICENSE ollama_metrics)
readonly megabytes_needed=100 # a new version takes up to 50 until pip is removed from it, then 3
readonly files_needed=4000        # the same in files: 1800, then 200

began=$(date +%s)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly began here

# What the command line asks for.
action=set_up purge='' dry='' timeout=60 asked_python='' wheelhouse='' with_socket=''
front='' tls_cert='' tls_key='' front_allow=() allow_from=() settings=()

# What has been found out.
python='' why_no_python='' version='' venv='' old='' was_active='' listened='' url='' restart=yes

# Where the run is, and what came of it.
locked='' number=0 steps=0 doing='' output='' sentence='' mode='' part=base problems=() kept=()

usage() {
    cat <<END
Installs ollama-metrics on this host; run again, it upgrades it in place. Needs root.

usage: ./install.sh [OPTIONS]
       $prefix/install.sh --uninstall [--purge]

  --dry-run            print every step and change nothing; needs no root
  --wheelhouse DIR     install from the wheels in DIR, without a network (make wheelhouse)
  --python PATH        the Python to use, 3.9 or newer (default: the newest in /usr/bin)
  --socket             let systemd hold the port ($socket): a restart refuses nobody
  --allow-from ADDR    open the port in firewalld to an address or network; may be repeated
  --timeout SECONDS    how long the service may take to get ready (default: $timeout)

  --front nginx        put nginx on Ollama's port 11434, with Ollama and /metrics behind it
  --front none         take it away again
  --tls-cert FILE      speak TLS there, with this certificate and its chain ...
  --tls-key FILE       ... and its key
  --front-allow ADDR   let in only this address or network, and this host; may be repeated

  --uninstall          remove everything but the settings and the state ...
  --purge              ... and these, too, and packages that were installed for it

Settings, which go into $config (docs/CONFIGURATION.md).
Where there is an ollama.service, --ollama is its address and --ollama-log its
journal, unless you have set them yourself: that Ollama has to be there.

$(setting_names | sed 's/.*/  --& VALUE/')

Exit codes: 0 done, 1 failed and undone, 2 called wrongly.
END
}

main() {
    parse "$@"
    trap 'unforeseen "$BASH_COMMAND"' ERR
    trap 'finish $?' EXIT
    trap 'sentence=interrupted; exit 130' INT
    trap 'sentence="ended by a signal"; exit 143' TERM HUP PIPE
    cd /
    # Messages that are looked at are English, and what sudo handed on must not reach Python.
    export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin
    unset "${!PYTHON@}" CDPATH TMPDIR
    export PYTHONDONTWRITEBYTECODE=1 # not into the system's folders, that is
    export SYSTEMCTL_SKIP_SYSV=1     # Debian's systemctl would rename nginx's links in /etc/rc?.d
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1

    [[ -d /run/systemd/system ]] || die 'systemd does not run here, and the agent is a service of it'
    find_python || true
    if [[ $dry ]]; then
        say 'A dry run: nothing is changed. What would be run stands after a +.'
    else
        ((EUID == 0)) || die "this needs root: sudo $0"
        # A folder is as good a lock as any file, and is there already.
        exec {lock}<"$units"
        flock --nonblock "$lock" || die 'another install.sh runs on this host; wait for it to end'
        locked=yes
        mend
    fi
    "$action"
}

# ---- the command line ----------------------------------------------------------------------------

parse() {
    while (($#)); do
        case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
        case $1 in
            -h | --help) usage && exit 0 ;;
            --uninstall) action=uninstall ;;
            --purge) purge=yes ;;
            --dry-run) dry=yes ;;
            --socket) with_socket=yes ;;
            --*)
                is_option "$1" || misuse "there is no option $1"
                [[ ${2-} && $2 != --* ]] || misuse "$1 needs a value"
                [[ $2 != *[[:cntrl:]]* ]] || misuse "the value of $1 has a line break in it"
                take "$1" "$2"
                shift
                ;;
            *) misuse "what is $1?" ;;
        esac
        shift
    done
    [[ ! $purge || $action == uninstall ]] || misuse '--purge goes with --uninstall'
    [[ ! ${settings[*]-} || $action == set_up ]] || misuse '--uninstall takes no settings'
    [[ $timeout =~ ^[1-9][0-9]{0,3}$ ]] || misuse "--timeout $timeout: give seconds, such as 60"
    [[ $front =~ ^(|nginx|none)$ ]] || misuse "--front $front: give nginx or none"
    [[ ${tls_cert:+x} == "${tls_key:+x}" ]] || misuse '--tls-cert and --tls-key go together'
    [[ $front == nginx || ! $tls_cert && ! ${front_allow[*]-} ]] ||
        misuse '--tls-cert, --tls-key and --front-allow go with --front nginx'
}

is_option() {
    case $1 in
        --wheelhouse | --python | --allow-from | --timeout) ;;
        --front | --tls-cert | --tls-key | --front-allow) ;;
        *) setting_names | grep -Fx -e "${1#--}" >/dev/null ;;
    esac
}

take() { # OPTION VALUE
    case $1 in
        --wheelhouse) wheelhouse=$(realpath -m -- "$2") ;;
        --python) asked_python=$(realpath -ms -- "$2") ;;
        --timeout) timeout=$2 ;;
        --front) front=$2 ;;
        --tls-cert) tls_cert=$(realpath -ms -- "$2") ;;
        --tls-key) tls_key=$(realpath -ms -- "$2") ;;
        --allow-from) allow_from+=("$2") ;;
        --front-allow) front_allow+=("$2") ;;
        *) settings+=("$(variable "${1#--}")" "$2") ;;
    esac
}

# The settings are those that the template names: a new one needs no change in here.
setting_names() {
    { cat "$here/systemd/environment" "$prefix/environment.template" 2>/dev/null || true; } |
        sed -n 's/^#OLLAMA_METRICS_\([A-Z_]*\)=.*/\1/p' | sort -u | tr 'A-Z_' 'a-z-'
}

variable() { # some-name: OLLAMA_METRICS_SOME_NAME
    tr 'a-z-' 'A-Z_' <<<"ollama-metrics-$1"
}

misuse() {
    printf 'install.sh: %s (see install.sh --help)\n' "$1" >&2
    exit 2
}

# ---- saying, running, failing --------------------------------------------------------------------

say() { printf '%s\n' "$*"; }
tell() { printf '      %s\n' "$*"; }

step() {
    number=$((number + 1)) doing=$1
    say "[$number/$steps] $1"
}

quoted() {
    local line
    printf -v line ' %q' "$@"
    say "${line# }"
}

# Runs a command, silently; prints it instead in a dry run. `output` is what it said.
try() {
    if [[ $dry ]]; then
        tell "+ $(quoted "$@")"
    else
        output=$(command -- "$@" 2>&1 </dev/null {lock}>&-)
    fi
}

# The same for a command that must not fail.
run() {
    try "$@" || die "while $doing, this failed: $(quoted "$@")" "$output"
}

# Ends it all, with the one sentence that tells why, and the last of what a command said about it.
die() { # SENTENCE [OUTPUT]
    local full='(No space left|Errno 28|Disk quota)'
    sentence=$1
    if [[ ${2-} =~ $full ]] || { [[ -d $prefix ]] && (($(megabytes_free) < 1 || $(files_free) < 1)); }; then
        sentence="the disk of $prefix became full while $doing; $megabytes_needed MB are needed"
    elif [[ ${2-} ]]; then
        sentence+=$'\n'$(tail -n 8 <<<"$2" | cut -c 1-300 | sed 's/^/    /')
    fi
    exit 1
}

# shellcheck disable=SC2317  # a trap calls it
unforeseen() {
    ((BASH_SUBSHELL == 0)) || return 0
    die "while $doing, this failed: $1"
}

# What it calls must not `return` without a number: in a trap that is the status of before the trap.
# shellcheck disable=SC2317  # a trap calls it
finish() { # STATUS
    local undone=''
    trap - ERR EXIT
    trap '' INT TERM HUP PIPE
    set +e
    # What is noted may be another run's, as long as this one has not the lock.
    if [[ $locked && -d $prefix ]]; then
        rm -rf "$work"
        if (($1 && ${#problems[@]} == 0)) && [[ -e $prefix/installing ]]; then
            if [[ -s $prefix/installing ]]; then
                say 'That failed: undoing what was done'
                undone='Everything is undone.'
            fi
            roll_back
        fi
    fi
    if (($1)) && [[ $sentence ]]; then
        say "install.sh: $sentence" >&2
        if ((${#problems[@]})); then
            printf 'Not undone: %s\n' "${problems[@]}" >&2
        elif [[ $undone ]]; then
            say "$undone" >&2
        fi
    fi
    exit "$1"
}

# ---- the journal ---------------------------------------------------------------------------------
#
#   installing  what this run has noted: PART KIND ARGUMENT..., with tabs in between
#   committed   the same under another name: in the moment of that rename the run has succeeded
#   installed   what all runs have noted that succeeded
#
# PART is base, packages, firewall, or front, which can be taken away by itself.

# Kinds that mean nothing once the run has succeeded.
readonly transient='unfinished|replaced|relinked|switched|socket|service|reloaded'

note() { # KIND ARGUMENT...
    local line
    [[ ! $dry ]] || return 0
    line=$(IFS=$'\t' && printf '%s' "$part"$'\t'"$*")
    grep -Fxqs -e "$line" "$prefix/installed" || printf '%s\n' "$line" >>"$prefix/installing"
}

# Whether an earlier run has noted it.
noted() { # PART KIND [ARGUMENTS]
    grep -Pqs "^$1\t$2(\t${3-.*})?\$" "$prefix/installed"
}

commit() {
    [[ ! $dry ]] || return 0
    trap '' INT TERM HUP PIPE
    mv "$prefix/installing" "$prefix/committed"
    merge
    rm -rf "$prefix/backup"
}

merge() {
    { cat "$prefix/installed" 2>/dev/null || true; } | cat - "$prefix/committed" |
        grep -Pv "^\w+\t($transient)(\t|\$)" | awk '!seen[$0]++' >"$prefix/installed.new"
    mv "$prefix/installed.new" "$prefix/installed"
    rm "$prefix/committed"
}

# After a run that was cut off: killed, or by a power cut.
mend() {
    [[ ! -e $prefix/committed ]] || merge
    rm -rf "$work"
    [[ -e $prefix/installing ]] || return 0
    say 'An earlier run was cut off: undoing what it did'
    roll_back
    no_problems 'what an earlier run left cannot be undone'
}

roll_back() {
    mode=roll_back
    undo "$prefix/installing"
    mode=''
    # As long as something is left to undo, the journal is needed.
    if ((${#problems[@]})); then return 0; fi
    if [[ ! -e $prefix/installed ]]; then rm -rf "$prefix"; fi
    rm -rf "$prefix/installing" "$prefix/backup"
}

# Undoes what is noted in a file, latest first. With PART only that, which is then forgotten.
undo() { # FILE [PART]
    local i lines words
    mapfile -t lines <"$1"
    for ((i = ${#lines[@]} - 1; i >= 0; i--)); do
        IFS=$'\t' read -r -a words <<<"${lines[i]}"
        if [[ ! ${2-} || ${words[0]} == "$2" ]]; then
            [[ $dry ]] || tell "- ${words[*]:1}"
            output=''
            "undo_${words[1]}" "${words[@]:2}" ||
                problems+=("${words[*]:1}${output:+: ${output##*$'\n'}}")
        fi
    done
    [[ ! ${2-} || $dry || ${#problems[@]} != 0 ]] || sed -i "/^$2\t/d" "$1"
}

no_problems() { # SENTENCE
    ((${#problems[@]} == 0)) || die "$1"
}

# ---- the kinds of change -------------------------------------------------------------------------
#
# An undo_KIND may find its change not made at all, or undone already.

# Writes a file, unless it has this text; one that was there comes back if the run fails. `written`
# tells whether it was.
put() { # PATH TEXT [MODE]
    written=''
    if [[ -f $1 && $(<"$1") == "$2" ]]; then return 0; fi
    written=yes
    if [[ $dry ]]; then
        tell "+ write $1"
        return 0
    fi
    make_folder "$(dirname "$1")"
    if [[ -e $1 && ! -e $prefix/backup$1 ]]; then
        note replaced "$1"
        mkdir -p "$(dirname "$prefix/backup$1")"
        cp -pf "$1" "$prefix/backup$1"
    fi
    [[ $1 == "$prefix"/* ]] || note "${kind:-file}" "$1" # what is in there goes with it, and last
    [[ -e $1 ]] || install -m "${3:-644}" /dev/null "$1"
    printf '%s\n' "$2" >"$1"
}
undo_file() { try rm -f "$1"; }
undo_replaced() { [[ ! -e $prefix/backup$1 ]] || try cp -pf "$prefix/backup$1" "$1"; }

# The settings stay where they are until --purge, and so does the state.
undo_settings() {
    if [[ $mode == uninstall && ! $purge ]]; then kept+=("$1"); else try rm -f "$1"; fi
}
undo_state() { # old, if it was there before the run that noted it
    [[ -e $state && ! ($mode == roll_back && ${1-} == old) ]] || return 0
    if [[ $mode == uninstall && ! $purge ]]; then
        kept+=("$state")
        try chown -R root:root "$state" # for its user may go; systemd gives it to the next one
    else
        try rm -rf "$state"
    fi
}

make_folder() {
    if [[ -d $1 ]]; then return 0; fi
    make_folder "$(dirname "$1")"
    note folder "$1"
    run mkdir "$1"
}
undo_folder() { [[ ! -d $1 ]] || try rmdir --ignore-fail-on-non-empty "$1"; }

make_link() { # LINK TARGET
    if [[ $(readlink "$1") == "$2" || $1 -ef $2 ]]; then return 0; fi
    [[ -L $1 || ! -e $1 ]] || die "$1 is a file of yours: move it away, or leave it out"
    make_folder "$(dirname "$1")"
    [[ ! -L $1 ]] || note relinked "$1" "$(readlink "$1")"
    note link "$1" "$2"
    run ln -sfn "$2" "$1"
}
undo_relinked() { try ln -sfn "$2" "$1"; }
undo_link() { [[ $(readlink "$1") != "$2" ]] || try rm -f "$1"; }

undo_unfinished() { try rm -rf "$1"; }

# One rename, so there is no moment without a version.
switch_to() { # versions/NAME
    run ln -sfn "$1" "$prefix/current.new"
    run mv -fT "$prefix/current.new" "$prefix/current"
}
undo_switched() { if [[ $1 == none ]]; then try rm -f "$prefix/current"; else switch_to "$1"; fi; }

package_names() {
    if command -v dpkg-query >/dev/null; then
        dpkg-query --show --showformat '${db:Status-Status} ${binary:Package}\n' |
            sed -n 's/^installed //p'
    else
        rpm -qa --queryformat '%{NAME}\n'
    fi | sort -u
}

# Whatever comes of it, what is installed afterwards and was not before is noted.
install_packages() { # NAME...
    local before after status=0 policy=/usr/sbin/policy-rc.d get
    if command -v apt-get >/dev/null; then
        get=(apt-get install --quiet --yes --no-install-recommends)
        try apt-get update --quiet || true # if that fails, what it got last time may do
    else
        get=(dnf --quiet --assumeyes install)
        policy=''
    fi
    if [[ $dry ]]; then
        try "${get[@]}" "$@"
        return 0
    fi
    before=$(package_names)
    if [[ $policy && ! -e $policy ]]; then
        # Debian would start what it installs; here that is done when everything is in its place.
        note unfinished "$policy"
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    else
        policy=''
    fi
    try "${get[@]}" "$@" || status=$?
    [[ ! $policy ]] || rm "$policy"
    mapfile -t after < <(package_names | comm -13 <(printf '%s\n' "$before") -)
    if ((${#after[@]})); then
        part=packages note packages "${after[@]}"
        tell "new packages: ${after[*]}"
    fi
    return "$status"
}
undo_packages() {
    local remove=(rpm --erase)
    ! command -v dpkg-query >/dev/null || remove=(dpkg --purge)
    if [[ $mode == uninstall && ! $purge ]]; then
        kept+=("packages that were installed for it: ${remove[*]} $*")
    else
        # Both refuse to remove what others need.
        try "${remove[@]}" "$@" || kept+=("packages $*: ${output%%$'\n'*}")
    fi
}

undo_group() {
    if getent group "$1" >/dev/null && ! id "$1" &>/dev/null; then try groupdel "$1"; fi
}
has_processes() { [[ $(find /proc -mindepth 1 -maxdepth 1 -user "$1" -print -quit 2>/dev/null) ]]; }
# The user stays as soon as it is Ollama's.
undo_user() {
    local home=/usr/share/$1
    id "$1" &>/dev/null || return 0
    if command -v ollama >/dev/null || [[ $(shown User ollama.service) == "$1" ]] ||
        [[ -d $home && $(ls -A "$home") ]] || { [[ ! $dry ]] && has_processes "$1"; }; then
        kept+=("the user $1, for Ollama or a process uses it")
    else
        try userdel "$1" && { [[ ! -d $home ]] || try rmdir "$home"; }
    fi
}

# Noted before the files of units, so that systemd hears of it when they are as they were.
undo_units() {
    try systemctl daemon-reload
    [[ $dry ]] || systemctl reset-failed "$service" "$socket" &>/dev/null || true
}
enable() {
    if [[ $(systemctl is-enabled "$1" 2>/dev/null) == enabled ]]; then return 0; fi
    note enabled "$1"
    run systemctl enable "$1"
}
undo_enabled() {
    if ! is_loaded "$1" || { [[ $1 == nginx.service ]] && serves_others; }; then return 0; fi
    try systemctl disable "$1"
}
undo_started() { ! is_loaded "$1" || try systemctl stop "$1"; }

# The socket as it was before, with the old addresses.
undo_socket() { # WHAT-IT-WAS
    try systemctl daemon-reload
    try systemctl stop "$service"
    restart=yes
    try systemctl restart "$socket"
}

# The service that ran before this run, for the old version and the old units are back by now.
undo_service() { # WHAT-IT-WAS
    [[ $1 == active ]] || return 0
    old=$(readlink "$prefix/current")
    try systemctl daemon-reload
    if [[ ! $restart ]] && renew reload "$old" 10; then return 0; fi
    systemctl reset-failed "$service" &>/dev/null
    renew restart "$old" "$timeout"
}

# ---- finding out ---------------------------------------------------------------------------------

shown() { systemctl show --property "$1" --value "$2"; }
is_loaded() { [[ $(shown LoadState "$1") == loaded ]]; }
is_active() { [[ $(systemctl is-active "$1") == active ]]; }
last_lines() { # UNIT
    journalctl --sync 2>/dev/null || true
    journalctl --quiet --no-pager --output=cat --unit="$1" --lines=6 --since="@$began" 2>&1 || true
}

megabytes_free() { on_disk -BM --output=avail; }

# A full table of files is a full disk, too. Some file systems have no such table.
files_free() {
    if (($(on_disk --output=itotal))); then on_disk --output=iavail; else echo "$files_needed"; fi
}

on_disk() { # df's OPTIONS
    local folder=$prefix
    while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
    df "$@" "$folder" | tail -n 1 | tr -dc '0-9' | sed 's/^$/0/'
}

# The answer of a URL, asked by way of no proxy; fails unless it is a 200 within 5 s.
fetch() {
    "${python:-$prefix/current/bin/python}" -I -c '
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
sys.stdout.buffer.write(opener.open(sys.argv[1], timeout=5).read())
' "$1" 2>/dev/null
}

await_answer() { # URL SECONDS
    local deadline=$((SECONDS + $2))
    if [[ $dry ]]; then
        tell "+ wait for $1"
        return 0
    fi
    until fetch "$1" >/dev/null; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

# Reloads or restarts the service, and waits until it is ready and runs from that version: after a
# reload the old process goes on answering for a moment.
renew() { # reload|restart versions/NAME SECONDS
    local deadline=$((SECONDS + $3)) restarts pid
    restarts=$(shown NRestarts "$service")
    try timeout "$3" systemctl "$1" "$service" || return 1
    [[ $1 == reload ]] || restarts=$(shown NRestarts "$service")
    listens
    url=${REPLY%% *}
    url=http://${url/#0.0.0.0:/127.0.0.1:}
    url=${url/'//[::]:'/'//[::1]:'}
    if [[ $dry ]]; then
        await_answer "$url/-/ready" 0
        return 0
    fi
    until pid=$(shown MainPID "$service") && ((pid)) && grep -Fqs "$(realpath "$prefix/$2")/" "/proc/$pid/maps" &&
        fetch "$url/-/ready" >/dev/null; do
        # Where systemd had to start it again, it has failed.
        ((SECONDS < deadline && $(shown NRestarts "$service") <= restarts)) || return 1
        sleep 0.2
    done
}

# REPLY is the value of a setting, or empty.
value_in() { # TEXT NAME
    local line pattern="^[[:space:]]*$2[[:space:]]*=[[:space:]]*(.*)"
    REPLY=''
    while IFS= read -r line; do
        if [[ $line =~ $pattern ]]; then
            REPLY=${BASH_REMATCH[1]}
            REPLY=${REPLY%"${REPLY##*[![:space:]]}"}
            case $REPLY in \'*\' | \"*\") REPLY=${REPLY:1:-1} ;; esac
        fi
    done <<<"$1"
}

# REPLY is TEXT with a setting, in the place of its line or of the one that is commented out. Within
# quotes nothing has a meaning, so that none has to be escaped.
set_in() { # TEXT NAME VALUE
    local line result='' pending=yes pattern="^[[:space:]]*$2[[:space:]]*="
    [[ $'\n'$1 =~ $'\n'[[:space:]]*"$2"[[:space:]]*= ]] || pattern="^#$2="
    while IFS= read -r line; do
        if [[ $pending && $line =~ $pattern ]]; then
            line="$2='$3'" pending=''
        fi
        result+=$line$'\n'
    done <<<"$1"
    [[ ! $pending ]] || result+="$2='$3'"$'\n'
    REPLY=${result%$'\n'}
}

current_settings() { if [[ -e $config ]]; then cat "$config"; fi; }

# REPLY is where the agent listens by the settings, addresses apart by spaces.
listens() { # [TEXT]
    value_in "${1-$(current_settings)}" OLLAMA_METRICS_LISTEN
    REPLY=${REPLY//,/ }
    [[ $REPLY ]] || REPLY=0.0.0.0:11435
}

# ---- installing and upgrading --------------------------------------------------------------------

set_up() {
    if [[ ! $front ]] && noted front nginx; then front=nginx; fi
    mapfile -t allow_from < <(firewall_addresses)
    steps=6
    [[ ! $front ]] || steps=7
    [[ ! ${allow_from[*]-} ]] || steps=$((steps + 1))

    look_around
    [[ $front != none ]] || take_front_away
    have_python
    have_user
    build
    configure
    deploy
    [[ $front != nginx ]] || put_front
    [[ ! ${allow_from[*]-} ]] || open_firewall
    commit
    tidy
    show
}

look_around() {
    local file n
    step 'looking at this host'
    for file in "${sources[@]}" systemd/{$service,$socket,environment}; do
        [[ -r $here/$file ]] ||
            die "there is no $file beside install.sh: run it from a whole checkout of ollama-metrics"
    done
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/ollama_metrics/__init__.py")
    [[ ! $wheelhouse ]] || compgen -G "$wheelhouse/ollama_metrics-$version-*.whl" >/dev/null ||
        die "there is no wheel of ollama-metrics $version in $wheelhouse: \`make wheelhouse\` makes one"
    # Whatever else is in there would go with --uninstall, and with a run that fails.
    [[ -e $prefix/installed || -e $units/$service || ! -d $prefix ]] ||
        [[ ! $(find "$prefix" -mindepth 1 -maxdepth 1 ! -name versions ! -name work ! -name lost+found) ]] ||
        die "$prefix is there and is not this installer's: move it away (a checkout belongs elsewhere)"
    (($(megabytes_free) >= megabytes_needed)) ||
        die "the disk of $prefix has $(megabytes_free) MB free, and $megabytes_needed are needed"
    (($(files_free) >= files_needed)) ||
        die "the disk of $prefix has room for $(files_free) more files, and $files_needed are needed"
    [[ $(systemctl is-enabled "$service" 2>/dev/null || true) != masked* ]] ||
        die "$service is masked: systemctl unmask $service"
    [[ $front != nginx ]] || look_at_ollama

    old=$(readlink "$prefix/current" || true)
    # A reload or a restart that somebody has just asked for takes a second.
    for ((n = 0; n < 100; n++)); do
        was_active=$(systemctl is-active "$service" || true)
        [[ $was_active =~ ^(reloading|activating|deactivating)$ && ! $dry ]] || break
        sleep 0.1
    done
    listens
    listened=$REPLY
    for ((n = 1; ; n++)); do
        venv=$prefix/versions/$version-$n
        [[ -e $venv ]] || break
    done
    tell "${old:+${old#versions/} is installed; }this makes ${venv##*/}"
}

# The folder with the journal, which the first change needs.
begin() {
    if [[ $dry || -d $work ]]; then return 0; fi
    adopt
    mkdir -p "$prefix/versions" "$work"
    : >"$prefix/installing"
}

# The journal of an installation whose own has been lost.
adopt() {
    if [[ -e $prefix/installed || ! -e $units/$service ]]; then return 0; fi
    tell 'the journal of what is installed is missing: taking it for a default installation'
    mkdir -p "$prefix"
    tr ' ' '\t' >"$prefix/installed" <<END
base folder ${config%/*}
base settings $config
base state
base units
base file $units/$service
base file $units/$socket
base link $link $prefix/current/bin/ollama-metrics
base enabled $service
base enabled $socket
base started $service
base started $socket
END
}

have_python() {
    step 'finding Python 3.9 or newer'
    [[ $python ]] || install_python
    if [[ -x $python ]]; then
        tell "$("$python" --version), $python"
        have_addresses
        have_ports
    fi
}

# What is asked of a Python, by somebody who is not root.
readonly usable='
import sys
if sys.version_info < (3, 9):
    sys.exit("Python %d.%d.%d is older than 3.9" % sys.version_info[:3])
if sys.prefix != sys.base_prefix:
    sys.exit("it is in a virtual environment")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("it cannot make virtual environments, python3-venv is missing")
'

# Sets `python`, else `why_no_python`. The service reaches no Python but those below /usr and /opt.
find_python() {
    local candidate candidates=(/usr{,/local}/bin/python3{.14,.13,.12,.11,.10,.9,}) as_nobody=()
    [[ ! $asked_python ]] || candidates=("$asked_python")
    ((EUID)) || as_nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    why_no_python='there is none'
    for candidate in "${candidates[@]}"; do
        [[ -x $candidate ]] || continue
        why_no_python='it is not below /usr or /opt, and the service reaches no other'
        [[ $(realpath "$candidate") =~ ^/(usr|opt)/ ]] || continue
        if why_no_python=$("${as_nobody[@]}" "$candidate" -I -c "$usable" 2>&1 >/dev/null); then
            python=$candidate
            return 0
        fi
        why_no_python=${why_no_python##*$'\n'}
    done
    return 1
}

install_python() {
    local packages=(python3 python3-venv) available name
    [[ ! $asked_python ]] || die "$asked_python will not do: ${why_no_python:-it is no Python}"
    tell "none in /usr/bin will do: $why_no_python"
    begin
    if command -v dnf >/dev/null && ! command -v apt-get >/dev/null; then
        # Rocky 8 has the first three, Rocky 9 and 10 the last.
        packages=(python3.12 python3.11 python39 python3)
        available=$(dnf --quiet repoquery --queryformat '%{name}\n' "${packages[@]}" 2>/dev/null) || true
        for name in "${packages[@]}"; do
            if grep -Fxq "$name" <<<"$available"; then packages=("$name") && break; fi
        done
        [[ $available ]] || die 'no Python will do, and dnf knows of none: does it reach its repositories?'
    elif ! command -v apt-get >/dev/null; then
        die "Python 3.9 or newer is needed, and dnf or apt-get to install it: $why_no_python"
    fi
    install_packages "${packages[@]}" ||
        die "no Python will do, and ${packages[*]} could not be installed" "$output"
    [[ $dry ]] || find_python ||
        die "Python 3.9 or newer is needed, and this system has none: $why_no_python"
    python=${python:-/usr/bin/python3}
}

have_addresses() {
    output=$("$python" -I -c '
import ipaddress, sys
for address in sys.argv[1:]:
    ipaddress.ip_network(address, strict=False)
' "${allow_from[@]}" "${front_allow[@]}" 2>&1) || die "${output#*ValueError: }: give one such as 192.0.2.0/24"
}

# Whether all that is to be listened on is free. What the service has already is no hindrance.
have_ports() {
    local own='' wanted=() address problem owner=''
    if [[ $was_active == active ]] || is_active "$socket"; then
        for address in $listened; do own+=" ${address##*:} "; done
    fi
    wanted_settings
    listens "$REPLY"
    for address in $REPLY; do
        [[ $address != *:0 ]] || die "--listen $address: give a port that clients can know"
        [[ $own == *" ${address##*:} "* ]] || wanted+=("$address")
    done
    [[ $front != nginx ]] || noted front nginx || wanted+=(127.0.0.1:11436)
    problem=$("$python" -I -c '
import socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
            probe.listen()
    except ValueError:
        continue  # the agent itself says better what is wrong with it
    except OSError as error:
        sys.exit("%s\t%s" % (address, error.strerror))
' "${wanted[@]}" 2>&1) && return 0
    address=${problem%%$'\t'*}
    [[ ! $(ss -Hltnp "sport = :${address##*:}" 2>/dev/null) =~ \"([^\"]+)\",pid=([0-9]+) ]] ||
        owner=" by ${BASH_REMATCH[1]}, process ${BASH_REMATCH[2]}"
    die "nothing can listen on $address: ${problem#*$'\t'}$owner; free it, or give another --listen"
}

have_user() {
    local groups
    step 'making the user ollama, if Ollama has not'
    begin
    if ! getent group ollama >/dev/null; then
        note group ollama
        run groupadd --system ollama
    fi
    if ! id ollama &>/dev/null; then
        groups=$({ getent group video render || true; } | cut -d : -f 1 | paste -sd ,)
        note user ollama
        run useradd --system --gid ollama ${groups:+--groups "$groups"} --shell /bin/false \
            --home-dir /usr/share/ollama --no-create-home ollama
        run install -d -o ollama -g ollama /usr/share/ollama
    fi
}

as_ollama() { # COMMAND...
    local who=(--reuid=ollama --regid=ollama)
    [[ $dry ]] || who=("--reuid=$(id -u ollama)" "--regid=$(getent group ollama | cut -d : -f 3)")
    try timeout 60 setpriv "${who[@]}" --init-groups env --ignore-environment PATH="$PATH" "$@"
}

build() {
    local file pip=("$venv/bin/python" -I -m pip --quiet --disable-pip-version-check)
    pip+=(--no-input --no-cache-dir)
    step "installing ollama-metrics $version into a virtual environment of its own"
    note unfinished "$venv"
    run "$python" -I -m venv "$venv"
    if [[ $wheelhouse ]]; then
        run "${pip[@]}" --isolated install --no-index --find-links "$wheelhouse" \
            "ollama-metrics==$version"
    else
        # From a copy, for building leaves files where it is done.
        run mkdir -p "$work/source" "$work/tmp"
        for file in "${sources[@]}"; do run cp -R "$here/$file" "$work/source"; done
        try env TMPDIR="$work/tmp" PIP_RETRIES=1 "${pip[@]}" install "$work/source" || pip_failed
    fi
    # Done with: it is nine tenths of the whole, and much to attack.
    run "${pip[@]}" uninstall --yes pip setuptools
    run "$venv/bin/python" -I -m compileall -q "$venv/lib"
}

pip_failed() {
    local unreachable='(Connection|ConnectTimeout|ReadTimeout|NameResolution|Proxy|SSL)Error'
    unreachable+='|No matching distribution'
    [[ ! $output =~ $unreachable ]] ||
        die 'pip reaches no package index: give --wheelhouse, with what "make wheelhouse" made elsewhere'
    die 'pip could not install ollama-metrics' "$output"
}

# REPLY is the text of the settings as this run is to leave them. `ours` tells whether nobody else
# has written them, `beside` whether the template goes beside them: it is new, they are not ours.
wanted_settings() {
    local template text name i before given=''
    template=$(<"$here/systemd/environment")
    text=$template ours=yes beside='' why_not_expected=''
    if [[ -e $config ]]; then
        before=$(<"$config")
        [[ $before == "$(cat "$prefix/environment.written" 2>/dev/null)" ]] || ours=''
        # The template, with what is set in the file.
        for name in $(setting_names); do
            name=$(variable "$name")
            value_in "$before" "$name"
            if [[ $REPLY ]]; then set_in "$text" "$name" "$REPLY" && text=$REPLY; fi
        done
        if [[ ! $ours && $text != "$before" ]]; then
            text=$before
            [[ $template == "$(cat "$prefix/environment.template" 2>/dev/null)" ]] || beside=yes
        fi
    fi
    for ((i = 0; i < ${#settings[@]}; i += 2)); do
        name=${settings[i]} REPLY=${settings[i + 1]}
        if [[ $name == OLLAMA_METRICS_LISTEN ]]; then given+=${given:+ }$REPLY && REPLY=$given; fi
        set_in "$text" "$name" "$REPLY" && text=$REPLY
    done
    if [[ $front == nginx && ! $given ]] && ! noted front nginx; then
        set_in "$text" OLLAMA_METRICS_LISTEN "$agent_address" && text=$REPLY
    fi
    if is_loaded ollama.service; then set_for_ollama; fi
    REPLY=$text
}

# What Ollama's own unit tells of it: that it has to be there, and where its log is. Changes `text`.
set_for_ollama() {
    if [[ $front == nginx ]]; then
        set_by_itself OLLAMA_METRICS_OLLAMA "${moved_url%/api/version}"
    elif [[ ! -x $python ]]; then # in a dry run that would have to install it
        :
    elif REPLY=$(address_of_ollama 2>&1); then
        set_by_itself OLLAMA_METRICS_OLLAMA "$REPLY"
    else
        why_not_expected=${REPLY##*$'\n'}
    fi
    value_in "$text" OLLAMA_METRICS_OLLAMA
    if [[ $REPLY != none && $(shown StandardOutput ollama.service) == journal* ]]; then
        set_by_itself OLLAMA_METRICS_OLLAMA_LOG journal:ollama.service
    fi
}

# Sets what nobody else has set. What an operator has taken out again stays out.
set_by_itself() { # NAME VALUE
    if is_given "$1"; then return 0; fi
    value_in "$text" "$1"
    if [[ $REPLY ]]; then
        noted '\w+' setting "$1\t[^\t]*\t\Q$REPLY\E" || return 0
    elif noted '\w+' setting "$1\t.*"; then
        return 0
    fi
    set_in "$text" "$1" "$2" && text=$REPLY
}

is_given() { # NAME
    local i
    for ((i = 0; i < ${#settings[@]}; i += 2)); do
        if [[ ${settings[i]} == "$1" ]]; then return 0; fi
    done
    return 1
}

# Where the OLLAMA_HOST of Ollama's unit leads, in the program's own understanding of it.
address_of_ollama() {
    local files
    mapfile -t files < <(shown EnvironmentFiles ollama.service)
    "$python" -I -B -c '
import glob, shlex, sys
sys.path.insert(0, sys.argv[1])
from ollama_metrics.ollama_url import from_ollama_host
assignments = shlex.split(sys.argv[2])
for pattern in sys.argv[3:]:  # what is in a file wins, as it does in systemd
    for path in sorted(glob.glob(pattern)):
        try:
            with open(path, errors="replace") as file:
                assignments += map(str.strip, file)
        except OSError:
            pass
host = ""
for assignment in assignments:
    name, _, value = assignment.partition("=")
    if name == "OLLAMA_HOST":
        host = value
try:
    print(from_ollama_host(host))
except ValueError as error:
    sys.exit("OLLAMA_HOST=%s: %s" % (host, error))
' "$here" "$(shown Environment ollama.service)" "${files[@]% (*}"
}

# The settings, and the new version with them, tried as the service's user before it is switched to.
configure() {
    local text
    step 'trying it as the user ollama'
    wanted_settings
    text=$REPLY
    [[ $dry ]] || printf '%s\n' "$text" >"$work/environment"
    if ! as_ollama "$venv/bin/python" -I -m ollama_metrics check --config "$work/environment"; then
        # What the agent has to say of settings is one line.
        [[ $output == *$'\n'* ]] ||
            die "the settings will not do: ${output//$work\/environment/$config}"
        die 'the new version does not work as the user ollama' "$output"
    fi
    as_ollama "$venv/bin/python" -I -m ollama_metrics once --config "$work/environment" ||
        die 'the new version does not work as the user ollama' "$output"

    note service "$was_active" # undone when the settings and all else are as they were
    note_settings "$text"
    kind=settings put "$config" "$text"
    [[ ! $ours ]] || put "$prefix/environment.written" "$text"
    if [[ $beside ]]; then
        put "$config.new" "$(<"$here/systemd/environment")"
        tell "you have changed $config, which stays; what is new is beside it, in environment.new"
    fi
    put "$prefix/environment.template" "$(<"$here/systemd/environment")"
}

# What this run sets by itself, so that it can be taken back: with the front, where that is why.
note_settings() { # TEXT
    local before part=$part
    value_in "$1" OLLAMA_METRICS_OLLAMA
    if [[ ! $REPLY && $why_not_expected ]]; then
        tell "ollama.service has $why_not_expected"
        tell "so it is not expected to be there, until --ollama says where"
    fi
    if changes OLLAMA_METRICS_OLLAMA_LOG "$1" && ! is_given OLLAMA_METRICS_OLLAMA_LOG; then
        tell "its requests are counted: OLLAMA_METRICS_OLLAMA_LOG is $REPLY"
        note setting OLLAMA_METRICS_OLLAMA_LOG - "$REPLY"
    fi
    [[ $front != nginx ]] || part=front
    # Behind the front the agent listens on loopback alone, without one where it did before.
    if [[ $front == nginx ]] && changes OLLAMA_METRICS_LISTEN "$1"; then
        note setting OLLAMA_METRICS_LISTEN "${before:--}" "$REPLY"
    fi
    if changes OLLAMA_METRICS_OLLAMA "$1" && ! is_given OLLAMA_METRICS_OLLAMA; then
        tell "Ollama is expected: OLLAMA_METRICS_OLLAMA is $REPLY"
        [[ $front == nginx ]] || fetch "$REPLY/api/version" >/dev/null ||
            tell "it does not answer there now: if it is elsewhere, say so with --ollama"
        # Only the front has a value of before to go back to.
        [[ $front == nginx && $before ]] || before=-
        note setting OLLAMA_METRICS_OLLAMA "$before" "$REPLY"
    fi
}
changes() { # NAME TEXT; `before` and REPLY are its value in the file and in the text
    value_in "$(current_settings)" "$1"
    before=$REPLY
    value_in "$2" "$1"
    [[ $REPLY && $REPLY != "$before" ]]
}
undo_setting() { # NAME BEFORE AFTER
    local text ours='' default
    text=$(current_settings)
    [[ $text != "$(cat "$prefix/environment.written" 2>/dev/null || true)" ]] || ours=yes
    value_in "$text" "$1"
    [[ $REPLY == "$3" ]] || return 0
    if [[ $dry ]]; then
        tell "+ write $config"
    elif [[ $2 == - ]]; then
        default=$(grep "^#$1=" "$prefix/environment.template" || echo "#$1=")
        sed -i "s|^$1=.*|$default|" "$config"
    else
        set_in "$text" "$1" "$2"
        printf '%s\n' "$REPLY" >"$config"
    fi
    [[ $dry || ! $ours ]] || cp "$config" "$prefix/environment.written"
}

# What the command line has set is the operator's own from then on, even if it is the same.
forget_given() {
    local name
    for name in OLLAMA_METRICS_OLLAMA OLLAMA_METRICS_OLLAMA_LOG; do
        if is_given "$name"; then sed -i "/^\w\+\tsetting\t$name\t/d" "$prefix/installed"; fi
    done
}

# From here on there is a difference for those who ask.
deploy() {
    local was_enabled socket_was socket_differs
    step 'starting the service'
    was_enabled=$(systemctl is-enabled "$service" 2>/dev/null || true)
    socket_was=$(systemctl is-active "$socket" || true)
    if [[ $socket_was == active ]]; then
        with_socket=yes
        note socket active # undone when its unit is as it was
    fi
    note state "$([[ -e $state ]] && printf old || printf new)"
    note units
    # A reload keeps the sockets, and 0.0.0.0:PORT cannot be had beside 127.0.0.1:PORT.
    listens
    restart=''
    [[ $REPLY == "$listened" ]] || restart=yes
    put_unit "$service"
    # Older ones would complain of settings that they do not know.
    (($(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p') < 254)) ||
        put_unit "$service.d/10-restart-backoff.conf" "$(<"$here/systemd/10-restart-backoff.conf")"
    put_unit "$socket"
    socket_differs=$written
    if [[ $with_socket ]]; then
        # shellcheck disable=SC2086  # a word for each address; the empty one forgets the unit's own
        put_unit "$socket.d/10-listen.conf" "[Socket]"$'\n'"$(printf 'ListenStream=%s\n' '' $REPLY)"
        socket_differs+=$written
    fi
    put "$prefix/install.sh" "$(<"$here/install.sh")" 755
    if [[ -e $link && $(readlink "$link") != "$prefix"/* ]]; then
        tell "$link is not ours and stays; the command is $prefix/current/bin/ollama-metrics"
    else
        make_link "$link" "$prefix/current/bin/ollama-metrics"
    fi
    note switched "${old:-none}"
    switch_to "${venv#"$prefix/"}"
    label "$prefix" "${config%/*}" "$units/$service" "$units/$socket"
    [[ ! $restart ]] || run systemctl daemon-reload

    if [[ $old && $was_active != active && $was_enabled == disabled ]]; then
        tell "it is stopped and disabled, and stays so: systemctl enable --now ollama-metrics"
        return 0
    fi
    # Somebody who disabled a service that runs has a reason.
    [[ $old ]] || enable "$service"
    if [[ $with_socket && ($socket_was != active || $socket_differs) ]]; then start_socket; fi
    start || die "version $version does not get ready; it said last:" "$(last_lines "$service")"
}

put_unit() { # NAME [TEXT]
    put "$units/$1" "${2-$(<"$here/systemd/$1")}"
    [[ ! $written ]] || restart=yes
}

label() {
    if command -v selinuxenabled >/dev/null && selinuxenabled; then run restorecon -R "$@"; fi
}

# The service has to let go of the port once.
start_socket() {
    enable "$socket"
    note started "$socket"
    run systemctl stop "$service"
    run systemctl restart "$socket"
    restart=yes
}

start() {
    if [[ $was_active == active && ! $restart ]]; then
        renew reload "${venv#"$prefix/"}" "$timeout"
    else
        note started "$service"
        renew restart "${venv#"$prefix/"}" "$timeout"
    fi
}

# The version before stays, for who wants it back: docs/OPERATIONS.md.
tidy() {
    local folder
    [[ ! $dry ]] || return 0
    doing='removing what is no longer needed'
    for folder in "$prefix"/versions/*; do
        if [[ $folder != "$venv" && $folder != "$prefix/$old" ]]; then rm -rf "$folder"; fi
    done
    forget_given
    close_old_ports
}

show() {
    local answer
    [[ $front != nginx ]] || url=http://127.0.0.1:11434
    if [[ ! $dry && $url ]] && answer=$(fetch "$url/metrics"); then
        say
        say "$url/metrics answers:"
        tell "${answer:0:180} ..."
    fi
    say
    say 'What you may want next:'
    tell 'systemctl status ollama-metrics'
    tell 'journalctl -u ollama-metrics -f'
    tell "vi $config && systemctl reload ollama-metrics"
}

# ---- the firewall --------------------------------------------------------------------------------

# For whom the ports are to be open: those of this run and of those before.
firewall_addresses() {
    {
        printf '%s\n' "${allow_from[@]}"
        cut -f 2-3 "$prefix/installed" 2>/dev/null | sed -n 's/^rule\t//p' || true
    } | sed '/^$/d' | sort -u
}

ports() {
    if [[ $front == nginx ]]; then
        echo 11434
    else
        listens
        tr ' ' '\n' <<<"$REPLY" | sed 's/.*://' | sort -u
    fi
}

rich_rule() { # ADDRESS PORT
    local family=ipv4
    [[ $1 != *:* ]] || family=ipv6
    printf 'rule family="%s" source address="%s" port port="%s" protocol="tcp" accept' \
        "$family" "$1" "$2"
}

open_firewall() {
    local address port rule family
    step 'opening the firewall'
    part=firewall
    for port in $(ports); do
        for address in "${allow_from[@]}"; do
            rule=$(rich_rule "$address" "$port")
            if ! firewall-cmd --state &>/dev/null; then
                tell "firewalld does not run; should another firewall, open port $port to $address, by"
                tell "    ufw allow proto tcp from $address to any port $port"
                [[ $address == *:* ]] && family=ip6 || family=ip
                tell "    nft add rule inet filter input $family saddr $address tcp dport $port accept"
            elif noted firewall rule "$address"$'\t'"$port" ||
                ! firewall-cmd --permanent --query-rich-rule="$rule" &>/dev/null; then
                note rule "$address" "$port"
                run firewall-cmd --permanent --add-rich-rule="$rule"
                run firewall-cmd --add-rich-rule="$rule"
            fi
        done
    done
    part=base
}
undo_rule() { # ADDRESS PORT
    local rule
    command -v firewall-cmd >/dev/null || return 0
    rule=$(rich_rule "$@")
    if firewall-cmd --state &>/dev/null; then
        try firewall-cmd --remove-rich-rule="$rule"
        try firewall-cmd --permanent --remove-rich-rule="$rule"
    else
        try firewall-offline-cmd --remove-rich-rule="$rule"
    fi
}

# Since the front was put in place or taken away, or the agent listens elsewhere.
close_old_ports() {
    local kind address port
    while IFS=$'\t' read -r _ kind address port; do
        if [[ $kind == rule ]] && ! ports | grep -Fx "$port" >/dev/null; then
            undo_rule "$address" "$port" || tell "firewalld keeps port $port open: $output"
            sed -i "\|^firewall\trule\t$address\t$port\$|d" "$prefix/installed"
        fi
    done < <(cat "$prefix/installed")
}

# ---- nginx on Ollama's port ----------------------------------------------------------------------
#
# nginx and Ollama cannot both have port 11434, so there is a moment without an answer on it, and
# what can be tried is tried before. When something goes wrong afterwards, nginx is taken away first
# and then Ollama is put back and looked at, for that is the journal from its end.

readonly ollama_url=http://127.0.0.1:11434/api/version moved_url=http://127.0.0.1:11436/api/version
readonly agent_address=127.0.0.1:11435
readonly nginx_folder=/etc/nginx/ollama-metrics

look_at_ollama() {
    local file
    for file in ${tls_cert:+"$tls_cert"} ${tls_key:+"$tls_key"}; do
        [[ -r $file ]] || die "there is no $file to read"
    done
    if noted front nginx; then return 0; fi
    is_loaded ollama.service ||
        die 'there is no ollama.service to put nginx in front of: install Ollama first'
    is_active ollama.service || die 'ollama.service does not run: systemctl start ollama'
    while IFS= read -r file; do
        ! grep -Eqs '^[[:space:]]*OLLAMA_HOST=' "${file% (*}" ||
            die "${file% (*} sets OLLAMA_HOST, and would win over the drop-in that moves Ollama: remove it there"
    done < <(shown EnvironmentFiles ollama.service)
    [[ ! $python ]] || fetch "$ollama_url" >/dev/null ||
        die "Ollama does not answer at $ollama_url, where the front takes its place: look at its OLLAMA_HOST"
}

put_front() {
    local nginx_was file from=$here/deploy/nginx drop_in=ollama.service.d/zz-ollama-metrics-front.conf
    step "putting nginx on Ollama's port"
    part=front
    command -v nginx >/dev/null || install_nginx
    nginx_was=$(systemctl is-active nginx.service || true)
    ! command -v selinuxenabled >/dev/null || ! selinuxenabled || permit_nginx

    # Noted first, for it is undone last. The drop-in counts when systemd reads it, not before.
    note ollama
    put "$units/$drop_in" "$(<"$from/$drop_in")"
    noted front nginx || note nginx "$nginx_was"
    note reloaded
    put /etc/nginx/conf.d/ollama-metrics.conf "$(<"$from/ollama-metrics.conf")"
    # These two are the operator's as soon as they are there.
    if [[ $tls_cert || ! -e $nginx_folder/listen.conf ]]; then put_listen; fi
    if [[ ${front_allow[*]-} || ! -e $nginx_folder/allow.conf ]]; then put_allow; fi
    label /etc/nginx "$units/ollama.service.d"
    try nginx -t || die 'nginx does not take the configuration of the front' "$output"

    noted front nginx || move_ollama
    if [[ $nginx_was == active ]]; then
        run systemctl reload nginx.service
    else
        enable nginx.service
        try systemctl start nginx.service ||
            die 'nginx does not start' "$(last_lines nginx.service)"
    fi
    for file in http://127.0.0.1:11434/metrics "$ollama_url"; do
        if ! await_answer "$file" 15; then
            # An Ollama that is down is no reason to keep a newer agent from its host.
            if noted front nginx && [[ $file == "$ollama_url" ]]; then
                tell "Ollama itself does not answer: systemctl status ollama"
            else
                die "there is no answer at $file through nginx" "$(last_lines nginx.service)"
            fi
        fi
    done
    [[ $dry || ! $tls_cert ]] || speaks_tls ||
        die 'nginx does not speak TLS on port 11434' "$(last_lines nginx.service)"
    # The agent looks once a second whether the Ollama that it expects has arrived there.
    value_in "$(current_settings)" OLLAMA_METRICS_OLLAMA
    [[ $REPLY != "${moved_url%/api/version}" ]] ||
        await_answer http://127.0.0.1:11434/health/ollama 5 || true
    part=base
}

install_nginx() {
    local welcome=/etc/nginx/sites-enabled/default
    install_packages nginx || die 'nginx is not here and could not be installed' "$output"
    # Debian's welcome page wants port 80, which may be somebody else's.
    if [[ -L $welcome ]]; then
        note unlinked "$welcome" "$(readlink "$welcome")"
        run rm "$welcome"
    fi
}
undo_unlinked() { # LINK TARGET
    [[ -e $1 || ! -d ${1%/*} ]] || try ln -s "$2" "$1"
}

put_listen() {
    local text
    text=$(<"$here/deploy/nginx/listen${tls_cert:+-tls}.conf")
    if [[ $tls_cert ]]; then
        make_link "$nginx_folder/server.crt" "$tls_cert"
        make_link "$nginx_folder/server.key" "$tls_key"
    fi
    [[ -e /proc/net/if_inet6 ]] || text=$(sed '/^listen \[/d' <<<"$text")
    put "$nginx_folder/listen.conf" "$text"
}

put_allow() {
    local text
    text=$(<"$here/deploy/nginx/allow.conf")
    if ((${#front_allow[@]})); then
        text=${text%allow all;}$(printf 'allow %s;\n' "${front_allow[@]}" 127.0.0.1 ::1; echo 'deny all;')
    fi
    put "$nginx_folder/allow.conf" "$text"
}

permit_nginx() {
    if [[ $(getsebool httpd_can_network_connect) == *off ]]; then
        note boolean httpd_can_network_connect
        run setsebool -P httpd_can_network_connect on
    fi
    if ! command -v semanage >/dev/null; then
        tell 'without semanage SELinux may keep nginx from port 11434:'
        tell '    dnf install policycoreutils-python-utils, and run this again'
    elif ! semanage port -l | grep -E '^http_port_t +tcp .*\b11434\b' >/dev/null; then
        note http_port 11434
        run semanage port -a -t http_port_t -p tcp 11434
    fi
}
undo_boolean() { try setsebool -P "$1" off; }
undo_http_port() { try semanage port -d -t http_port_t -p tcp "$1"; }

move_ollama() {
    run systemctl daemon-reload
    [[ $dry || " $(shown Environment ollama.service) " == *' OLLAMA_HOST=127.0.0.1:11436 '* ]] ||
        die 'a drop-in of ollama.service sets OLLAMA_HOST after zz-ollama-metrics-front.conf: remove it there'
    run systemctl restart ollama.service
    await_answer "$moved_url" "$timeout" ||
        die "Ollama, restarted, does not answer at $moved_url within $timeout s" "$(last_lines ollama.service)"
}

# Back on its port, unless it is there because it was never restarted.
undo_ollama() {
    try systemctl daemon-reload
    is_loaded ollama.service || return 0
    [[ $mode != uninstall || $(systemctl is-active ollama.service) != inactive ]] || return 0
    if [[ ! $dry ]] && fetch "$ollama_url" >/dev/null && ! fetch "$moved_url" >/dev/null; then return 0; fi
    try systemctl restart ollama.service
    output="it does not answer at $ollama_url"
    await_answer "$ollama_url" "$timeout"
}

# Whether nginx has come to serve more than the front, which a run that fails need not ask.
serves_others() {
    local file
    [[ $mode != roll_back ]] || return 1
    for file in /etc/nginx/conf.d/*.conf /etc/nginx/sites-enabled/*; do
        [[ ! -e $file || $file == */ollama-metrics.conf || $file == */sites-enabled/default ]] || return 0
    done
    return 1
}

undo_nginx() { # WHAT-IT-WAS
    local deadline=$((SECONDS + 10))
    if ! is_active nginx.service; then
        [[ $dry ]] || systemctl reset-failed nginx.service &>/dev/null || true
        return 0
    fi
    if [[ $1 == active ]] || serves_others; then
        try nginx -t || return 1
        try systemctl reload nginx.service || return 1
    else
        try systemctl stop nginx.service || return 1
    fi
    # It lets go of the port a moment later.
    until [[ $dry || $(ss -Hltnp 'sport = :11434') != *'"nginx"'* ]]; do
        output='it does not let go of port 11434'
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}
undo_reloaded() { ! is_active nginx.service || try systemctl reload nginx.service; }

# A connection to any address of this host but the one that stays plain.
speaks_tls() {
    "$python" -I -c '
import socket, ssl
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.wrap_socket(socket.create_connection(("127.0.0.2", 11434), 5)).close()
' 2>/dev/null
}

take_front_away() {
    step 'taking nginx away, and putting Ollama back on its port'
    if noted front nginx; then
        mode=uninstall
        undo "$prefix/installed" front
        no_problems 'the front could not be taken away'
        mode=''
    fi
}

# ---- removing ------------------------------------------------------------------------------------

uninstall() {
    local folder
    doing='removing ollama-metrics'
    mode=uninstall
    [[ $dry ]] || adopt
    if [[ -e $prefix/installed ]]; then
        say 'Undoing what was installed, latest first:'
        undo "$prefix/installed"
        no_problems "not all could be undone: see to it, and run $prefix/install.sh --uninstall again"
        run rm -rf "$prefix"
    fi
    for folder in "${config%/*}" "$state"; do
        if [[ $purge && -e $folder ]]; then run rm -rf "$folder"; fi
    done
    if ((${#kept[@]})); then
        say 'What stays:'
        printf '      %s\n' "${kept[@]}"
    fi
    [[ $dry ]] || say 'ollama-metrics is not installed any more.'
}

main "$@"
