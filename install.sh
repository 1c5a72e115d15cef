#!/usr/bin/env bash
#
# Installs ollama-metrics on this host, upgrades it, or removes it: `sudo ./install.sh --help`.
#
# What it makes, and nothing besides:
#
#   /opt/ollama-metrics            each version in a virtual environment of its own; `current` is a
#                                  link to one of them, and an upgrade is a rename of that link
#   /etc/ollama-metrics            the settings; what you changed in there is never overwritten
#   /etc/systemd/system            ollama-metrics.service and ollama-metrics.socket
#   /usr/local/bin/ollama-metrics  the command
#   user and group ollama          as Ollama's own installer makes them, if it has not
#   packages                       Python, only where there is none that will do, by dnf or apt-get
#   with --allow-from              rules in firewalld
#   with --front nginx             nginx on Ollama's port, Ollama itself on 127.0.0.1:11436
#
# How it leaves nothing half-done: a change is noted in a journal before it is made, and for each kind
# of change there is a function undo_KIND. A run that fails undoes what it noted, `--uninstall` undoes
# what all runs noted, and what a power cut left is undone by the next run. `journal` has the files.
#
# Needs bash 4.4, coreutils, util-linux and systemd 239: what Rocky Linux 8 has.

set -Eeuo pipefail
shopt -s inherit_errexit
umask 022

readonly prefix=/opt/ollama-metrics
readonly units=/etc/systemd/system
readonly config=/etc/ollama-metrics/environment
readonly command=/usr/local/bin/ollama-metrics
readonly state=/var/lib/ollama-metrics
readonly work=$prefix/work # gone when this script ends
readonly service=ollama-metrics.service socket=ollama-metrics.socket
readonly sources=(pyproject.toml README.md LICENSE ollama_metrics)
readonly megabytes_needed=150 # a new version takes 40 until pip has been removed from it, then 3

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here

# What the command line asks for.
action=set_up purge='' dry='' timeout=60 python='' wheelhouse='' with_socket=''
front='' tls_cert='' tls_key='' front_allow=() allow_from=() settings=()

# What has been found out, and where the run is.
part=base number=0 steps=0 doing='' sentence='' output='' mode='' restart=yes old='' url='' version='' venv='' was_active='' listened=''
problems=() kept=()

usage() {
    cat <<END
Installs ollama-metrics on this host; run again, it upgrades it in place. Needs root.

usage: sudo ./install.sh [OPTIONS]
       sudo $prefix/install.sh --uninstall [--purge]

  --dry-run            print every step and change nothing; needs no root
  --wheelhouse DIR     install from the wheels in DIR, without a network (make wheelhouse)
  --python PATH        the Python to use, 3.9 or newer (default: the newest in /usr/bin)
  --socket             let systemd hold the port ($socket), so that a restart refuses nobody
  --allow-from ADDR    open the port in firewalld to this address or network; may be repeated
  --timeout SECONDS    how long the service may take until it is ready (default: $timeout)

  --front nginx        put nginx on Ollama's port 11434, with /metrics and all else behind it
  --front none         take it away again
  --tls-cert FILE      speak TLS there, with this certificate ...
  --tls-key FILE       ... and this key
  --front-allow ADDR   let only this address or network, and this host, in; may be repeated

  --uninstall          remove it all, but for settings and state ...
  --purge              ... and with --uninstall these, and packages installed for it, too

Settings, which go into $config:

END
    local name
    for name in $(setting_names); do printf '  --%s VALUE\n' "$name"; done
    printf '\nExit codes: 0 done, 1 failed and undone, 2 called wrongly.\n'
}

main() {
    parse "$@"
    trap 'unforeseen "$BASH_COMMAND"' ERR
    trap 'finish $?' EXIT
    trap 'sentence="interrupted"; exit 130' INT
    trap 'sentence="ended by a signal"; exit 143' TERM HUP PIPE
    cd /
    # Messages that are looked at are English; what a sudo hands on must not reach Python or pip.
    export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin
    unset "${!PYTHON@}" CDPATH TMPDIR
    export PYTHONDONTWRITEBYTECODE=1 # not into the system's folders, that is
    export SYSTEMCTL_SKIP_SYSV=1     # Debian's systemctl would rename nginx's links in /etc/rc?.d

    [[ -d /run/systemd/system ]] || die 'systemd does not run here; ollama-metrics is installed as its service'
    if [[ $dry ]]; then
        say 'A dry run: nothing is changed. What would be run stands after a +.'
    else
        ((EUID == 0)) || die "this needs root: sudo $0"
        # The folder is as good a lock as any, and leaves no file behind.
        exec {lock}<"$units"
        flock --nonblock "$lock" || die 'another install.sh runs on this host; wait for it to end'
        mend
    fi
    "$action"
}

# ---- the command line ------------------------------------------------------------------------------

parse() {
    local option
    while (($#)); do
        case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
        option=$1
        case $option in
            -h | --help) usage && exit 0 ;;
            --uninstall) action=uninstall ;;
            --purge) purge=yes ;;
            --dry-run) dry=yes ;;
            --socket) with_socket=yes ;;
            --*)
                is_option "$option" || misuse "there is no option $option"
                [[ ${2-} && $2 != --* ]] || misuse "$option needs a value"
                [[ $2 != *[[:cntrl:]]* ]] || misuse "the value of $option has a line break or the like in it"
                take_value "$option" "$2"
                shift
                ;;
            *) misuse "what is $option?" ;;
        esac
        shift
    done
    [[ ! $purge || $action == uninstall ]] || misuse '--purge goes with --uninstall'
    [[ $action == set_up || ! ${settings[*]-} ]] || misuse '--uninstall takes no settings'
    [[ $timeout =~ ^[1-9][0-9]{0,3}$ ]] || misuse "--timeout $timeout: give seconds, such as 60"
    [[ $front =~ ^(|nginx|none)$ ]] || misuse "--front $front: give nginx or none"
    [[ ${tls_cert:+x} == "${tls_key:+x}" ]] || misuse '--tls-cert and --tls-key go together'
    [[ $front == nginx || ! $tls_cert && ! ${front_allow[*]-} ]] ||
        misuse '--tls-cert, --tls-key and --front-allow go with --front nginx'
}

is_option() {
    case $1 in
        --wheelhouse | --python | --allow-from | --timeout | --front | --tls-cert | --tls-key | --front-allow) ;;
        *) [[ " $(setting_names | tr '\n' ' ')" == *" ${1#--} "* ]] ;;
    esac
}

take_value() { # OPTION VALUE
    case $1 in
        --wheelhouse) wheelhouse=$(realpath -m -- "$2") ;;
        --python) python=$(realpath -ms -- "$2") ;;
        --timeout) timeout=$2 ;;
        --front) front=$2 ;;
        --tls-cert) tls_cert=$(realpath -ms -- "$2") ;;
        --tls-key) tls_key=$(realpath -ms -- "$2") ;;
        --allow-from) is_network "$2" && allow_from+=("$2") ;;
        --front-allow) is_network "$2" && front_allow+=("$2") ;;
        *) settings+=("$(variable "$1")" "$2") ;;
    esac
}

# The settings are those that the template names: a new one needs no change in here.
setting_names() {
    local template=$here/systemd/environment
    [[ -r $template ]] || template=$prefix/environment.template
    [[ -r $template ]] || return 0
    sed -n 's/^#OLLAMA_METRICS_\([A-Z_]*\)=.*/\1/p' "$template" | tr 'A-Z_' 'a-z-'
}

variable() { # --some-name: OLLAMA_METRICS_SOME_NAME
    local name=${1#--}
    name=${name//-/_}
    printf 'OLLAMA_METRICS_%s' "${name^^}"
}

is_network() {
    local part='(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])' v6='^[0-9a-fA-F:]*:[0-9a-fA-F:.]*(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?$'
    [[ $1 =~ ^$part\.$part\.$part\.$part(/(3[0-2]|[12]?[0-9]))?$ || $1 =~ $v6 ]] ||
        misuse "$1 is no address or network: give one such as 192.0.2.10 or 192.0.2.0/24"
}

misuse() {
    printf 'install.sh: %s (see install.sh --help)\n' "$1" >&2
    exit 2
}

# ---- saying, running, failing ----------------------------------------------------------------------

say() { printf '%s\n' "$*"; }
tell() { printf '      %s\n' "$*"; }

step() {
    number=$((number + 1)) doing=$1
    say "[$number/$steps] $1"
}

plan() { # in a dry run: the command that would run
    local line
    printf -v line ' %q' "$@"
    tell "+$line"
}

# Runs a command that says nothing unless it fails; that is the end then.
run() {
    try "$@" || failed "$@"
}

# The same, but whoever calls it decides what a failure means.
try() {
    if [[ $dry ]]; then
        plan "$@"
    else
        output=$(command -- "$@" 2>&1 </dev/null {lock}>&-)
    fi
}

failed() {
    local line
    printf -v line ' %q' "$@"
    die "while $doing, this failed:$line" "$output"
}

# The one sentence that a failure is told in, and what the command that failed said last. Whatever
# failed, with a full disk it is the disk.
die() { # SENTENCE [OUTPUT]
    sentence=$1
    if [[ ${2-} =~ (No space left|Errno 28|Disk quota) ]] || { [[ -d $prefix ]] && (($(megabytes_free) < 1)); }; then
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

# shellcheck disable=SC2317  # a trap calls it
finish() {
    local status=$1 end=''
    trap - ERR EXIT
    trap '' INT TERM HUP PIPE
    set +e
    if ((status)) && [[ ! $dry && -s $prefix/installing ]]; then
        say 'That failed: undoing what was done'
        roll_back
        end='Everything is undone.'
    fi
    [[ $dry ]] || rm -rf "$work"
    if ((status)) && [[ $sentence ]]; then
        say "install.sh: $sentence" >&2
        if ((${#problems[@]})); then
            say 'Not undone:' >&2
            printf '    %s\n' "${problems[@]}" >&2
        elif [[ $end ]]; then
            say "$end" >&2
        fi
    fi
    exit "$status"
}

# ---- the journal -----------------------------------------------------------------------------------
#
#   installing  what this run has noted so far: PART KIND ARGUMENT..., a tab in between
#   committed   the same under another name: that rename is the moment in which a run has succeeded
#   installed   what all runs that succeeded have noted; --uninstall reads it
#
# PART (base, socket, firewall, front) is what can be taken away by itself.

# Kinds that matter only until the run has succeeded.
readonly transient='replaced|switched|service|unfinished|reloaded'

note() { # KIND ARGUMENT...
    local line
    [[ ! $dry ]] || return 0
    line=$(IFS=$'\t' && printf '%s' "$part"$'\t'"$*")
    if ! grep -Fxqs -e "$line" "$prefix/installed"; then
        printf '%s\n' "$line" >>"$prefix/installing"
    fi
}

noted() { # PART KIND [ARGUMENT]: whether an earlier run has noted it
    grep -Pqs "^$1\t$2(\t${3-.*})?\$" "$prefix/installed"
}

commit() {
    [[ ! $dry ]] || return 0
    mv "$prefix/installing" "$prefix/committed" # the old version is no longer what a failure leads to
    merge
    rm -rf "$prefix/backup"
}

merge() {
    {
        cat "$prefix/installed" 2>/dev/null || true
        grep -Pv "^\w+\t($transient)(\t|\$)" "$prefix/committed" || true
    } | awk '!seen[$0]++' >"$prefix/installed.new"
    mv "$prefix/installed.new" "$prefix/installed"
    rm "$prefix/committed"
}

# After a run that was cut off: killed, or by a power cut.
mend() {
    [[ ! -e $prefix/committed ]] || merge
    rm -rf "$work"
    if [[ -e $prefix/installing ]]; then
        say 'An earlier run was cut off: undoing what it did'
        roll_back
        ((${#problems[@]} == 0)) || die "what an earlier run left cannot be undone" "$(printf '%s\n' "${problems[@]}")"
    fi
}

roll_back() {
    mode=roll_back
    undo "$prefix/installing"
    ((${#problems[@]})) || rm -rf "$prefix/installing" "$prefix/backup"
    mode=''
}

# Undoes what is noted in a file, latest first; with PART only that part, which is then forgotten.
undo() { # FILE [PART]
    local i words lines
    mapfile -t lines <"$1"
    for ((i = ${#lines[@]} - 1; i >= 0; i--)); do
        IFS=$'\t' read -r -a words <<<"${lines[i]}"
        if [[ ! ${2-} || ${words[0]} == "$2" ]]; then
            [[ $dry ]] || tell "- ${words[*]:1}"
            "undo_${words[1]}" "${words[@]:2}" || problems+=("${words[*]:1}${output:+: ${output##*$'\n'}}")
        fi
    done
    [[ ! ${2-} || $dry ]] || sed -i "/^$2\t/d" "$1"
}

# ---- the kinds of change ---------------------------------------------------------------------------
#
# Each undo_KIND may find its change not made, or already undone.

# A file with this text; one that was there comes back if the run fails. Sets `written` if it differed.
put() { # PATH TEXT [MODE]
    written=''
    if [[ -f $1 && $(<"$1") == "$2" ]]; then return; fi
    written=yes
    if [[ $dry ]]; then
        tell "+ write $1"
        return
    fi
    make_folder "$(dirname "$1")"
    if [[ -e $1 && ! -e $prefix/backup$1 ]]; then
        note replaced "$1"
        mkdir -p "$(dirname "$prefix/backup$1")"
        cp -pf "$1" "$prefix/backup$1"
    fi
    note "${kind:-file}" "$1"
    if [[ ! -e $1 ]]; then install -m "${3:-644}" /dev/null "$1"; fi
    printf '%s\n' "$2" >"$1"
}
undo_file() { try rm -f "$1"; }
undo_replaced() {
    [[ -e $prefix/backup$1 ]] || return 0
    try cp -pf "$prefix/backup$1" "$1"
}

# The settings stay where they are until --purge.
undo_settings() {
    if [[ $mode != uninstall || $purge ]]; then try rm -f "$1"; else kept+=("$1"); fi
}
undo_state() {
    [[ -e $state ]] || return 0
    if [[ $mode != uninstall || $purge ]]; then
        try rm -rf "$state"
    else
        kept+=("$state")
        try chown -R root:root "$state" # systemd gives it back to the service's user
    fi
}

make_folder() {
    if [[ -d $1 ]]; then return; fi
    make_folder "$(dirname "$1")"
    note folder "$1"
    run mkdir "$1"
}
undo_folder() {
    [[ -d $1 ]] || return 0
    try rmdir --ignore-fail-on-non-empty "$1"
}

undo_tree() {
    [[ $1 == "$prefix"* ]] || return 1
    # What could not be undone is still to be found in here by the next run.
    [[ $1 != "$prefix" || ${#problems[@]} == 0 ]] || return 0
    try rm -rf "$1"
}

undo_unfinished() { try rm -rf "$1"; }

make_link() { # LINK TARGET
    if [[ -L $1 && $(readlink "$1") == "$2" ]]; then return; fi
    make_folder "$(dirname "$1")"
    note link "$1" "$2"
    run ln -sfn "$2" "$1"
}
undo_link() {
    [[ $(readlink "$1") == "$2" ]] || return 0
    try rm -f "$1"
}

# One rename: there is no moment without a version.
switch_to() { # what `current` is to point to
    run ln -sfn "$1" "$prefix/current.new"
    run mv -fT "$prefix/current.new" "$prefix/current"
}
undo_switched() {
    if [[ $1 == none ]]; then try rm -f "$prefix/current"; else switch_to "$1"; fi
}

package_names() {
    if command -v dpkg-query >/dev/null; then
        dpkg-query --show --showformat '${db:Status-Status} ${binary:Package}\n' | sed -n 's/^installed //p'
    else
        rpm -qa --queryformat '%{NAME}\n'
    fi | sort -u
}

# Notes what became installed that was not, whether or not the command succeeds; that is what it returns.
install_packages() { # COMMAND...
    local before added status=0 policy=/usr/sbin/policy-rc.d
    if [[ $dry ]]; then
        plan "$@"
        return
    fi
    before=$(package_names)
    if [[ ! -e $policy ]] && command -v apt-get >/dev/null; then
        # Debian would start what it installs; here that is done when everything is in its place.
        note unfinished "$policy"
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 try "$@" || status=$?
        rm "$policy"
    else
        DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 try "$@" || status=$?
    fi
    mapfile -t added < <(comm -13 <(printf '%s\n' "$before") <(package_names))
    if ((${#added[@]})); then
        note packages "${added[@]}"
        tell "new packages: ${added[*]}"
    fi
    return "$status"
}
undo_packages() {
    local remove=(rpm --erase)
    if command -v dpkg-query >/dev/null; then remove=(dpkg --purge); fi
    if [[ $mode == uninstall && ! $purge ]]; then
        kept+=("packages: to remove them, ${remove[*]} $*")
    elif [[ $dry ]]; then
        plan "${remove[@]}" "$@"
    else
        try "${remove[@]}" "$@" || kept+=("packages $*: ${remove[*]} says ${output%%$'\n'*}")
    fi
}

undo_group() {
    if getent group "$1" >/dev/null && ! id "$1" &>/dev/null; then try groupdel "$1"; fi
}
# The user is Ollama's as soon as Ollama is there.
undo_user() {
    local home=/usr/share/$1
    id "$1" &>/dev/null || return 0
    if command -v ollama >/dev/null || is_loaded ollama.service ||
        [[ -d $home && $(ls -A "$home") ]] ||
        [[ ! $dry && $(find /proc -mindepth 1 -maxdepth 1 -user "$1" -print -quit 2>/dev/null) ]]; then
        kept+=("the user $1: Ollama, or a process, uses it")
        return 0
    fi
    try userdel "$1" && { [[ ! -d $home ]] || try rmdir "$home"; }
}

# Units whose files have changed; what is noted after this one is undone before systemd is told.
undo_units() {
    try systemctl daemon-reload
    [[ $dry ]] || systemctl reset-failed "$service" "$socket" &>/dev/null || true
}

enable() {
    if [[ $(systemctl is-enabled "$1" 2>/dev/null) == enabled ]]; then return; fi
    note enabled "$1"
    run systemctl enable "$1"
}
undo_enabled() { ! is_loaded "$1" || try systemctl disable "$1"; }
undo_started() { ! is_loaded "$1" || try systemctl stop "$1"; }

# The service as it ran before: with the old units and the old version, which are back by now.
undo_service() { # WAS-ACTIVE
    [[ $1 == active ]] || return 0
    old=$(readlink "$prefix/current")
    try systemctl daemon-reload
    systemctl reset-failed "$service" 2>/dev/null
    if [[ ! $restart ]] && try timeout 20 systemctl reload "$service" && await_version "$old" 10; then return; fi
    try timeout "$timeout" systemctl restart "$service" && await_version "$old" "$timeout"
}

is_loaded() { [[ $(systemctl show --property LoadState --value "$1") == loaded ]]; }

# ---- finding out -----------------------------------------------------------------------------------

megabytes_free() {
    local folder=$prefix
    while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
    df --output=avail -BM "$folder" | tr -dc '0-9\n' | tail -n 1
}

# Asks a URL by way of no proxy; prints the answer, fails unless it is a 200 within 5 s.
fetch() {
    "$python" -I -c '
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
sys.stdout.buffer.write(opener.open(sys.argv[1], timeout=5).read())
' "$1" 2>/dev/null
}

await_answer() { # URL SECONDS
    local deadline=$((SECONDS + $2))
    if [[ $dry ]]; then
        tell "+ wait for $1"
        return
    fi
    until fetch "$1" >/dev/null; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

# Waits until the service is ready and runs from that version: after a reload the old process still
# answers for a moment.
await_version() { # versions/NAME SECONDS
    local deadline=$((SECONDS + $2)) pid
    find_url
    if [[ $dry ]]; then
        tell "+ wait for $url/-/ready"
        return
    fi
    until pid=$(systemctl show --property MainPID --value "$service") && ((pid)) &&
        grep -Fqs "$prefix/$1/" "/proc/$pid/maps" && fetch "$url/-/ready" >/dev/null; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

# Settings as text: REPLY is the value of NAME, or empty.
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

# REPLY is TEXT with NAME set to VALUE, in the place of its line or of the one that is commented out.
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

# REPLY is where the agent listens by the settings in TEXT, addresses apart by spaces.
listens_in() { # TEXT
    value_in "$1" OLLAMA_METRICS_LISTEN
    REPLY=${REPLY//,/ }
    [[ $REPLY ]] || REPLY=0.0.0.0:11435
}

# The agent's own URL, by the settings in force.
find_url() {
    listens_in "$(cat "$config" 2>/dev/null || true)"
    local address=${REPLY%% *}
    url=http://${address/#0.0.0.0:/127.0.0.1:}
    url=${url/'//[::]:'/'//[::1]:'}
}

# ---- installing and upgrading ----------------------------------------------------------------------

set_up() {
    local name
    if [[ ! $front ]] && noted front nginx; then front=nginx; fi
    mapfile -t allow_from < <(firewall_addresses)
    steps=6
    [[ $front != nginx ]] || steps=$((steps + 1))
    ((${#allow_from[@]} == 0)) || steps=$((steps + 1))

    look_around
    [[ $front != none ]] || take_front_away
    have_python
    have_user
    build
    configure
    deploy
    [[ $front != nginx ]] || put_front
    ((${#allow_from[@]} == 0)) || open_firewall
    commit
    tidy
    show
}

look_around() {
    local file unit_state
    step 'looking at this host'
    for file in "${sources[@]}" systemd/{$service,$socket,environment}; do
        [[ -r $here/$file ]] || die "there is no $file beside install.sh: run it from a whole checkout of ollama-metrics"
    done
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/ollama_metrics/__init__.py")
    if [[ $wheelhouse ]] && ! compgen -G "$wheelhouse/ollama_metrics-$version-*.whl" >/dev/null; then
        die "there is no wheel of ollama-metrics $version in $wheelhouse: \`make wheelhouse\` makes one"
    fi
    (($(megabytes_free) >= megabytes_needed)) ||
        die "the disk of $prefix has $(megabytes_free) MB free, and $megabytes_needed are needed"
    unit_state=$(systemctl is-enabled "$service" 2>/dev/null || true)
    [[ $unit_state != masked* ]] || die "$service is masked: systemctl unmask $service"
    [[ $front != nginx ]] || look_at_ollama

    old=$(readlink "$prefix/current" || true)
    was_active=$(systemctl is-active "$service" || true)
    listens_in "$(cat "$config" 2>/dev/null || true)"
    listened=$REPLY
    for ((name = 1; ; name++)); do
        venv=$prefix/versions/$version-$name
        [[ -e $venv ]] || break
    done
    if [[ $old ]]; then
        tell "${old#versions/} is installed, and becomes ${venv##*/}"
    else
        tell "ollama-metrics is not installed; this makes ${venv##*/}"
    fi
}

# The folder with the journal, which the first change needs.
begin() {
    if [[ $dry || -d $work ]]; then return; fi
    adopt
    if [[ ! -d ${prefix%/*} ]]; then
        mkdir -p "$prefix"
        note folder "${prefix%/*}"
    fi
    mkdir -p "$prefix/versions" "$work"
    note tree "$prefix"
}

# The journal of an installation whose own has been lost.
adopt() {
    if [[ -e $prefix/installed || ! -e $units/$service ]]; then return; fi
    tell 'the journal of what is installed is missing: taking it for a default installation'
    mkdir -p "$prefix"
    tr ' ' '\t' >"$prefix/installed" <<END
base tree $prefix
base folder ${config%/*}
base settings $config
base state
base units
base file $units/$service
base file $units/$socket
base link $command $prefix/current/bin/ollama-metrics
base enabled $service
socket enabled $socket
base started $service
socket started $socket
END
}

have_python() {
    step 'Python 3.9 or newer'
    find_python || install_python
    tell "$python, $("$python" -c 'import platform; print(platform.python_version())' 2>/dev/null || true)"
    have_ports
}

# In the sandbox of the service there is no /home, and programs are run from /usr and /opt alone.
readonly usable='
import sys
if sys.version_info < (3, 9):
    sys.exit("it is Python %d.%d.%d, and 3.9 or newer is needed" % sys.version_info[:3])
if sys.prefix != sys.base_prefix:
    sys.exit("it is a virtual environment")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("it cannot make virtual environments; python3-venv is missing")
'

# Sets `python`; otherwise `output` is why the last one that was looked at will not do.
find_python() {
    local candidate folder name as_nobody=()
    ((EUID)) || as_nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    output='there is none'
    if [[ $python ]]; then
        output="there is no $python"
        [[ -x $python ]] || return 1
        output='it is not below /usr or /opt, and the service reaches no other'
        [[ $(realpath "$python") =~ ^/(usr|opt)/ ]] || return 1
        output=$("${as_nobody[@]}" "$python" -I -c "$usable" 2>&1)
        return
    fi
    for folder in /usr/bin /usr/local/bin; do
        for name in python3.{14,13,12,11,10,9} python3; do
            candidate=$folder/$name
            if [[ -x $candidate && $(realpath "$candidate") =~ ^/(usr|opt)/ ]] &&
                output=$("${as_nobody[@]}" "$candidate" -I -c "$usable" 2>&1); then
                python=$candidate
                return
            fi
        done
    done
    return 1
}

install_python() {
    local available packages=(python3 python3-venv)
    [[ ! $python ]] || die "$python will not do: ${output:-it is no Python}"
    tell "in /usr/bin: $output"
    begin
    part=packages
    if command -v apt-get >/dev/null; then
        install_packages apt-get install --quiet --yes --no-install-recommends "${packages[@]}" ||
            { try apt-get update --quiet && install_packages apt-get install --quiet --yes --no-install-recommends "${packages[@]}"; } ||
            die 'no Python will do, and apt-get could not install one' "$output"
    elif command -v dnf >/dev/null; then
        # Rocky 8 has the first three, Rocky 9 and 10 a python3 that will do.
        available=$(dnf --quiet repoquery --queryformat '%{name}\n' python3.12 python3.11 python39 python3 2>/dev/null </dev/null || true)
        packages=()
        for name in python3.12 python3.11 python39 python3; do
            [[ $'\n'$available$'\n' != *$'\n'$name$'\n'* ]] || packages+=("$name")
        done
        ((${#packages[@]})) || die 'no Python will do, and dnf finds none: are its repositories reachable?'
        install_packages dnf --quiet --assumeyes install "${packages[0]}" ||
            die "no Python will do, and dnf could not install ${packages[0]}" "$output"
    else
        die "no Python will do ($output), and there is neither dnf nor apt-get to install one; install Python 3.9 or newer, or give one with --python"
    fi
    part=base
    if [[ $dry ]]; then
        python=/usr/bin/python3
    else
        find_python || die "Python 3.9 or newer is needed, and this system has none ($output); give one with --python"
    fi
}

# Whether what we are to listen on is free, before anything is changed. What our own service listens
# on already is no hindrance.
have_ports() {
    local own='' wanted=() address problem owner
    [[ -x $python ]] || return 0
    if [[ $was_active == active || $(systemctl is-active "$socket") == active ]]; then
        listens_in "$(cat "$config" 2>/dev/null || true)"
        own=" ${REPLY//[^ ]*:/} "
    fi
    wanted_settings
    listens_in "$REPLY"
    for address in $REPLY; do
        [[ $own == *" ${address##*:} "* ]] || wanted+=("$address")
    done
    [[ $front != nginx ]] || noted front nginx || wanted+=(127.0.0.1:11436)
    ((${#wanted[@]})) || return 0
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
' "${wanted[@]}" 2>&1) && return
    address=${problem%%$'\t'*}
    owner=$(ss -Hltnp "sport = :${address##*:}" 2>/dev/null | grep -oE '"[^"]+",pid=[0-9]+' | head -n 1 | tr -d '"' || true)
    die "nothing can listen on $address: ${problem#*$'\t'}${owner:+, by ${owner/,pid=/, process }}; free it, or give another --listen"
}

have_user() {
    local groups
    step 'the user ollama'
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
        tell 'made, as Ollama makes it'
    fi
}

as_ollama() { # COMMAND...
    local who=(--reuid=ollama --regid=ollama)
    [[ $dry ]] || who=("--reuid=$(id -u ollama)" "--regid=$(getent group ollama | cut -d : -f 3)")
    try timeout 60 setpriv "${who[@]}" --init-groups env --ignore-environment PATH="$PATH" "$@"
}

build() {
    local pip=("$venv/bin/python" -I -m pip --quiet --disable-pip-version-check --no-input --no-cache-dir) file
    step "ollama-metrics $version in a virtual environment of its own"
    note unfinished "$venv"
    run "$python" -I -m venv "$venv"
    if [[ $wheelhouse ]]; then
        run "${pip[@]}" --isolated install --no-index --find-links "$wheelhouse" "ollama-metrics==$version"
    else
        # A copy, for building leaves files where it is done, and of root's.
        run mkdir -p "$work/source" "$work/tmp"
        for file in "${sources[@]}"; do run cp -R "$here/$file" "$work/source"; done
        run rm -rf "$work/source/ollama_metrics/__pycache__"
        try env TMPDIR="$work/tmp" PIP_RETRIES=1 "${pip[@]}" install "$work/source" || pip_failed
    fi
    # It has done its work, and is 9 of 10 megabytes and much to attack.
    run "${pip[@]}" uninstall --yes pip setuptools
    run "$venv/bin/python" -I -m compileall -q "$venv/lib"
}

pip_failed() {
    if [[ $output =~ (NewConnectionError|ConnectTimeout|ConnectionError|ReadTimeout|ProxyError|SSLError|No matching distribution) ]]; then
        die 'pip reaches no package index: connect this host, or fill a wheelhouse elsewhere (make wheelhouse) and give it with --wheelhouse'
    fi
    die 'pip could not install ollama-metrics' "$output"
}

# REPLY is the text of the settings as this run leaves them, `beside` is set if the template is to go
# beside what the operator has changed.
wanted_settings() {
    local template text name value i before=''
    local -A given=()
    template=$(<"$here/systemd/environment")
    beside=''
    text=$template
    if [[ -e $config ]]; then
        before=$(<"$config")
        if [[ -e $prefix/environment.written && $before == "$(<"$prefix/environment.written")" ]]; then
            # Nobody but an earlier run has written it: the new template, with what was set in the old.
            for name in $(setting_names); do
                name=$(variable "--$name")
                value_in "$before" "$name"
                if [[ $REPLY ]]; then
                    set_in "$text" "$name" "$REPLY"
                    text=$REPLY
                fi
            done
        else
            text=$before
            [[ $template == "$(cat "$prefix/environment.template" 2>/dev/null || true)" ]] || beside=yes
        fi
    fi
    for ((i = 0; i < ${#settings[@]}; i += 2)); do
        name=${settings[i]} value=${settings[i + 1]}
        if [[ $name == OLLAMA_METRICS_LISTEN && ${given[$name]-} ]]; then value="${given[$name]} $value"; fi
        given[$name]=$value
    done
    if [[ $front == nginx ]]; then : "${given[OLLAMA_METRICS_LISTEN]:=$agent_behind_front}"; fi
    for name in "${!given[@]}"; do
        set_in "$text" "$name" "${given[$name]}"
        text=$REPLY
    done
    REPLY=$text
}

# The settings, and the new version tried with them as the service's user, before anything is switched.
configure() {
    local text before
    step 'trying it as the user ollama'
    wanted_settings
    text=$REPLY
    if [[ ! $dry ]]; then printf '%s\n' "$text" >"$work/environment"; fi
    as_ollama "$venv/bin/python" -I -m ollama_metrics check --config "$work/environment" ||
        die "the settings will not do: ${output//$work\/environment/$config}"
    as_ollama "$venv/bin/python" -I -m ollama_metrics once --config "$work/environment" ||
        die "the new version gives no reading as the user ollama" "$output"
    if [[ $front == nginx ]]; then
        value_in "$(cat "$config" 2>/dev/null || true)" OLLAMA_METRICS_LISTEN
        before=$REPLY
        value_in "$text" OLLAMA_METRICS_LISTEN
        [[ $REPLY == "$before" ]] || part=front note listen "${before:--}" "$REPLY"
    fi
    kind=settings put "$config" "$text"
    [[ ! $written ]] || tell "settings in $config"
    if [[ $beside ]]; then
        put "$config.new" "$(<"$here/systemd/environment")"
        tell "you have changed $config: it stays, and what is new stands in $config.new"
    else
        put "$prefix/environment.written" "$text"
    fi
    put "$prefix/environment.template" "$(<"$here/systemd/environment")"
}

# From here on something is different for those who ask.
deploy() {
    local enabled drop_in=$units/$service.d/10-restart-backoff.conf socket_was
    step 'the service'
    enabled=$(systemctl is-enabled "$service" 2>/dev/null || true)
    socket_was=$(systemctl is-active "$socket" || true)
    [[ $socket_was != active ]] || with_socket=yes
    note service "$was_active"
    note state
    note units
    restart='' socket_changed=''
    # A reload keeps the sockets, and 0.0.0.0:PORT cannot be had beside 127.0.0.1:PORT.
    listens_in "$(cat "$config" 2>/dev/null || true)"
    [[ $REPLY == "$listened" ]] || restart=yes
    put_unit "$units/$service" "$(<"$here/systemd/$service")"
    # Older ones would complain of settings that they do not know.
    if (($(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p') >= 254)); then
        put_unit "$drop_in" "$(<"$here/systemd/${drop_in##*/}")"
    fi
    put_unit "$units/$socket" "$(<"$here/systemd/$socket")"
    socket_changed=$written
    [[ ! $with_socket ]] || put_socket_addresses
    put "$prefix/install.sh" "$(<"$here/install.sh")" 755
    if [[ -e $command && $(readlink "$command") != "$prefix"/* ]]; then
        tell "$command is not ours and stays; the command is $prefix/current/bin/ollama-metrics"
    else
        make_link "$command" "$prefix/current/bin/ollama-metrics"
    fi
    note switched "${old:-none}"
    switch_to "${venv#"$prefix/"}"
    label "$prefix" "${config%/*}" "$units/$service" "$units/$socket"
    [[ ! $restart ]] || run systemctl daemon-reload

    if [[ $old && $was_active != active && $enabled == disabled ]]; then
        tell "$service is stopped and disabled, and stays so: systemctl enable --now $service"
        return
    fi
    # Who disabled a service that runs has a reason.
    [[ $old ]] || enable "$service"
    [[ ! $with_socket ]] || start_socket
    start || die "version $version did not get ready within $timeout s; its last lines:" "$(last_lines "$service")"
    tell "ready, at $url/metrics"
}

put_unit() { # PATH TEXT
    put "$@"
    [[ ! $written ]] || restart=yes
}

label() {
    if command -v selinuxenabled >/dev/null && selinuxenabled; then run restorecon -R "$@"; fi
}

put_socket_addresses() {
    local text=$'[Socket]\nListenStream=' address
    listens_in "$(cat "$config" 2>/dev/null || true)"
    for address in $REPLY; do text+=$'\n'"ListenStream=$address"; done
    part=socket
    put_unit "$units/$socket.d/10-listen.conf" "$text"
    part=base
    socket_changed+=$written
}

# The service gives the port to the socket, so it is down for this once.
start_socket() {
    [[ $socket_was != active || $socket_changed ]] || return 0
    part=socket
    enable "$socket"
    note started "$socket"
    part=base
    run systemctl stop "$service"
    run systemctl restart "$socket"
    restart=yes
}

start() {
    if [[ $was_active == active && ! $restart ]]; then
        try timeout "$timeout" systemctl reload "$service" || return
    else
        note started "$service"
        try timeout "$timeout" systemctl restart "$service" || return
    fi
    await_version "${venv#"$prefix/"}" "$timeout"
}

last_lines() { journalctl --quiet --no-pager --output=cat --unit="$1" --lines=6 --since=-2min 2>/dev/null || true; }

# The version before stays, for who wants it back: see docs/OPERATIONS.md.
tidy() {
    local folder
    doing='removing older versions'
    for folder in "$prefix"/versions/*; do
        if [[ ! $dry && $folder != "$venv" && $folder != "$prefix/$old" ]]; then rm -rf "$folder"; fi
    done
    [[ $dry ]] || drop_old_rules
}

show() {
    local answer
    [[ $front != nginx ]] || url=http://127.0.0.1:11434
    if [[ ! $dry ]] && answer=$(fetch "$url/metrics"); then
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

# ---- the firewall ----------------------------------------------------------------------------------

# All addresses that the ports are to be open for: those of this run and of those before.
firewall_addresses() {
    {
        if ((${#allow_from[@]})); then printf '%s\n' "${allow_from[@]}"; fi
        sed -n 's/^firewall\trule\t\([^\t]*\)\t.*/\1/p' "$prefix/installed" 2>/dev/null || true
    } | sort -u
}

ports() {
    if [[ $front == nginx ]]; then
        echo 11434
    else
        listens_in "$(cat "$config" 2>/dev/null || true)"
        tr ' ' '\n' <<<"$REPLY" | sed 's/.*://' | sort -u
    fi
}

rule() { # ADDRESS PORT
    local family=ipv4
    [[ $1 != *:* ]] || family=ipv6
    printf 'rule family="%s" source address="%s" port port="%s" protocol="tcp" accept' "$family" "$1" "$2"
}

open_firewall() {
    local address port
    step 'the firewall'
    part=firewall
    for port in $(ports); do
        for address in "${allow_from[@]}"; do
            if ! firewall-cmd --state &>/dev/null; then
                tell "firewalld does not run. If another firewall does, open port $port to $address, by one of"
                tell "    ufw allow proto tcp from $address to any port $port"
                tell "    nft add rule inet filter input $([[ $address == *:* ]] && echo ip6 || echo ip) saddr $address tcp dport $port accept"
            elif ! noted firewall rule "$address"$'\t'"$port" &&
                firewall-cmd --quiet --permanent --query-rich-rule="$(rule "$address" "$port")" &>/dev/null; then
                tell "port $port is open to $address already"
            else
                note rule "$address" "$port"
                run firewall-cmd --quiet --permanent --add-rich-rule="$(rule "$address" "$port")"
                run firewall-cmd --quiet --add-rich-rule="$(rule "$address" "$port")"
                tell "port $port is open to $address"
            fi
        done
    done
    part=base
}
undo_rule() { # ADDRESS PORT
    command -v firewall-cmd >/dev/null || return 0
    if firewall-cmd --state &>/dev/null; then
        try firewall-cmd --quiet --remove-rich-rule="$(rule "$@")" || true
        try firewall-cmd --quiet --permanent --remove-rich-rule="$(rule "$@")"
    else
        try firewall-offline-cmd --remove-rich-rule="$(rule "$@")"
    fi
}

# Rules for a port that is in use no more, for the front was put in place or taken away.
drop_old_rules() {
    local address port
    sed -n 's/^firewall\trule\t//p' "$prefix/installed" | while IFS=$'\t' read -r address port; do
        if ! ports | grep -qx "$port"; then
            undo_rule "$address" "$port" || tell "the rule for port $port stays in firewalld: $output"
            sed -i "\\#^firewall\trule\t$address\t$port\$#d" "$prefix/installed"
        fi
    done
}

# ---- nginx on Ollama's port ------------------------------------------------------------------------
#
# Ollama and nginx cannot both have port 11434, so there is a moment without an answer on it; what can
# go wrong is tried before. When it goes wrong afterwards, nginx is taken away first, then Ollama is
# put back, and whether it answers there is looked at: the journal is undone from its end.

readonly ollama_url=http://127.0.0.1:11434/api/version moved_url=http://127.0.0.1:11436/api/version
readonly agent_behind_front=127.0.0.1:11435
readonly nginx_folder=/etc/nginx/ollama-metrics

look_at_ollama() {
    local file
    for file in "$tls_cert" "$tls_key"; do
        [[ ! $file || -r $file ]] || die "there is no $file to read"
    done
    noted front nginx && return
    is_loaded ollama.service ||
        die 'there is no ollama.service to put nginx in front of; install Ollama first'
    [[ $(systemctl is-active ollama.service) == active ]] ||
        die 'ollama.service does not run: systemctl start ollama'
}

put_front() {
    local new='' nginx_was file text folder=$here/deploy/nginx
    step "nginx on Ollama's port"
    command -v nginx >/dev/null || install_nginx
    if ! noted front nginx; then
        new=yes
        [[ $dry ]] || fetch "$ollama_url" >/dev/null ||
            die "Ollama does not answer at $ollama_url; is OLLAMA_HOST another? The front takes over port 11434"
    fi
    part=front
    nginx_was=$(systemctl is-active nginx.service || true)
    ! command -v selinuxenabled >/dev/null || ! selinuxenabled || permit_nginx

    # Noted first, undone last; it counts only when systemd reads it.
    note ollama
    put "$units/ollama.service.d/zz-ollama-metrics-front.conf" "$(<"$folder/ollama.service.d/zz-ollama-metrics-front.conf")"
    noted front nginx || note nginx "$nginx_was"
    note reloaded
    put /etc/nginx/conf.d/ollama-metrics.conf "$(<"$folder/ollama-metrics.conf")"
    if [[ $tls_cert || ! -e $nginx_folder/listen.conf ]]; then put_listen; fi
    if [[ ${front_allow[*]-} || ! -e $nginx_folder/allow.conf ]]; then
        text=$(<"$folder/allow.conf")
        if ((${#front_allow[@]})); then
            text=${text/%allow all;/"$(printf 'allow %s;\n' "${front_allow[@]}" 127.0.0.1 ::1)"$'\n'deny all;}
        fi
        put "$nginx_folder/allow.conf" "$text"
    fi
    label /etc/nginx "$units/ollama.service.d"
    try nginx -t || die 'nginx does not take the configuration of the front' "$output"

    [[ ! $new ]] || move_ollama
    if [[ $nginx_was == active ]]; then
        run systemctl reload nginx.service
    else
        enable nginx.service
        try systemctl start nginx.service || die 'nginx does not start' "$(last_lines nginx.service)"
    fi
    for text in "$ollama_url" http://127.0.0.1:11434/metrics; do
        await_answer "$text" 15 || die "there is no answer at $text through nginx" "$(last_lines nginx.service)"
    done
    part=base
    tell 'Ollama and /metrics answer on port 11434'
}

install_nginx() {
    local default=/etc/nginx/sites-enabled/default
    part=packages
    if command -v apt-get >/dev/null; then
        install_packages apt-get install --quiet --yes --no-install-recommends nginx
    else
        install_packages dnf --quiet --assumeyes install nginx
    fi || die 'nginx is not here, and could not be installed' "$output"
    # Debian's welcome page wants port 80, which may be somebody else's.
    part=front
    if [[ -L $default ]]; then
        note unlinked "$default" "$(readlink "$default")"
        run rm "$default"
    fi
}
undo_unlinked() { # LINK TARGET
    [[ -d ${1%/*} && ! -e $1 ]] || return 0
    try ln -s "$2" "$1"
}

put_listen() {
    local text nginx_version
    text=$(<"$here/deploy/nginx/listen${tls_cert:+-tls}.conf")
    if [[ $tls_cert ]]; then
        make_link "$nginx_folder/server.crt" "$tls_cert"
        make_link "$nginx_folder/server.key" "$tls_key"
        nginx_version=$(nginx -v 2>&1 | sed 's#.*/\([0-9.]*\).*#\1#' || true)
        if [[ $(printf '%s\n' 1.25.1 "$nginx_version" | sort -V | head -n 1) == 1.25.1 ]]; then
            text=$(sed -e '/^listen/s/ http2//' -e 's/^# http2 on;/http2 on;/' <<<"$text")
        fi
    fi
    [[ -e /proc/net/if_inet6 ]] || text=$(sed '/^listen \[/d' <<<"$text")
    put "$nginx_folder/listen.conf" "$text"
}

permit_nginx() {
    if [[ $(getsebool httpd_can_network_connect) == *off ]]; then
        note boolean httpd_can_network_connect
        run setsebool -P httpd_can_network_connect on
    fi
    if ! command -v semanage >/dev/null; then
        tell 'if SELinux keeps nginx from port 11434: dnf install policycoreutils-python-utils, and again'
    elif ! semanage port -l | grep -E '^http_port_t +tcp ' | grep -qw 11434; then
        note labelled 11434
        run semanage port -a -t http_port_t -p tcp 11434
    fi
}
undo_boolean() { try setsebool -P "$1" off; }
undo_labelled() { try semanage port -d -t http_port_t -p tcp "$1"; }

move_ollama() {
    local environment
    run systemctl daemon-reload
    environment=$(systemctl show --property Environment --value ollama.service)
    [[ $dry || " $environment " == *' OLLAMA_HOST=127.0.0.1:11436 '* ]] ||
        die 'another drop-in of ollama.service sets OLLAMA_HOST after ours; remove it first'
    run systemctl restart ollama.service
    await_answer "$moved_url" "$timeout" ||
        die "Ollama did not answer at $moved_url within $timeout s; is there an OLLAMA_HOST in a file that EnvironmentFile= names?"
}

undo_nginx() { # WHAT-IT-WAS
    local deadline=$((SECONDS + 10))
    [[ $(systemctl is-active nginx.service) == active ]] || return 0
    if [[ $1 == active ]]; then try systemctl reload nginx.service; else try systemctl stop nginx.service; fi
    # It lets go of the port a moment later.
    until [[ $dry || ! $(ss -Hltn 'sport = :11434' 2>/dev/null) ]] || ((SECONDS >= deadline)); do sleep 0.1; done
}
undo_reloaded() {
    [[ $(systemctl is-active nginx.service) != active ]] || try systemctl reload nginx.service
}

# Back on its port, where it is unless it had been moved and restarted.
undo_ollama() {
    try systemctl daemon-reload
    is_loaded ollama.service || return 0
    if [[ $mode == uninstall && $(systemctl is-active ollama.service) == inactive ]]; then return; fi
    if [[ ! $dry ]] && fetch "$ollama_url" >/dev/null; then return; fi
    try systemctl restart ollama.service
    output="it does not answer at $ollama_url"
    await_answer "$ollama_url" "$timeout"
}

# The settings as they were before the front, for a later installation without one.
undo_listen() { # BEFORE WITH-THE-FRONT
    local text
    [[ -e $config ]] || return 0
    text=$(<"$config")
    value_in "$text" OLLAMA_METRICS_LISTEN
    [[ $REPLY == "$2" ]] || return 0
    if [[ $dry ]]; then
        tell "+ write $config"
    elif [[ $1 == - ]]; then
        sed -i 's/^OLLAMA_METRICS_LISTEN=.*/#OLLAMA_METRICS_LISTEN=0.0.0.0:11435/' "$config"
    else
        set_in "$text" OLLAMA_METRICS_LISTEN "$1"
        printf '%s\n' "$REPLY" >"$config"
    fi
}

take_front_away() {
    step 'taking nginx away, and Ollama back to its port'
    if [[ ! -e $prefix/installed ]] || ! noted front nginx; then
        tell 'there is no front'
        return
    fi
    find_python || true
    mode=uninstall
    undo "$prefix/installed" front
    mode=''
    ((${#problems[@]} == 0)) || die 'the front could not be taken away' "$(printf '%s\n' "${problems[@]}")"
}

# ---- removing --------------------------------------------------------------------------------------

uninstall() {
    local folder end='ollama-metrics is not installed.'
    doing='removing ollama-metrics'
    mode=uninstall
    find_python || true # only to see whether Ollama answers
    [[ $dry ]] || adopt
    if [[ -e $prefix/installed ]]; then
        say 'Undoing what was installed, the latest first'
        undo "$prefix/installed"
        end='ollama-metrics is removed.'
    fi
    if [[ $purge ]]; then
        for folder in "${config%/*}" "$state"; do
            [[ ! -e $folder ]] || run rm -rf "$folder"
        done
    fi
    ((${#problems[@]} == 0)) ||
        die "this could not be undone; see to it and run $prefix/install.sh --uninstall again" "$(printf '%s\n' "${problems[@]}")"
    ((${#kept[@]} == 0)) || {
        say 'Left in place:'
        printf '      %s\n' "${kept[@]}"
    }
    [[ $dry ]] || say "$end"
}

main "$@"
