#!/bin/sh
# Installs skep or skep-edge from the files of a release, which `ci/packages` makes: a folder, or an https:// address that has them.
# Nothing is installed that SHA256SUMS does not name, or that differs from it. Run again, it brings what is installed up to date.
set -eu

usage() {
    cat <<'EOF'
usage: install.sh FROM [--edge] [--prefix DIR] [--sums HEX] [--allow-http]

  FROM          the folder with a release's files, or its address, https://…
  --edge        skep-edge instead of skep
  --prefix DIR  into DIR/bin, DIR/etc and DIR/lib, and nowhere else: needs no root. Without it the program goes to /usr/local/bin, its settings
                to /etc/skep, its unit to /etc/systemd/system, and a system user is made
  --sums HEX    what the SHA-256 of the file SHA256SUMS must be, as you know it from elsewhere: without it, whoever can change the files
                where they come from can change SHA256SUMS too
  --allow-http  take http:// too: anybody on the way could change the files. With --sums only
EOF
}

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
wrong() {
    printf 'error: %s\n\n' "$*" >&2
    usage >&2
    exit 2
}

# Beside the file that it replaces, so that the last step is a rename: whoever is interrupted has the old one or the new.
put() { # MODE FILE TO
    mkdir -p "$(dirname "$3")"
    half=$(dirname "$3")/.$(basename "$3").$$.half
    rm -f "$half"
    cp "$2" "$half"
    chmod "$1" "$half"
    sync -d "$half" 2>/dev/null || sync
    mv -f "$half" "$3"
    half=
}

# Into $work; a release's files are flat, and no name comes from anywhere but here.
get() { # NAME
    case $from in
    http://* | https://*)
        if command -v curl >/dev/null; then
            curl --fail --silent --show-error --location --proto "=$schemes" --max-filesize 400000000 --output "$work/$1" "$from/$1" ||
                fail "cannot get $from/$1"
        elif command -v wget >/dev/null; then
            # It would follow from https:// to http:// if it followed at all.
            wget --quiet --max-redirect=0 --tries=2 --timeout=60 --output-document="$work/$1" "$from/$1" || fail "cannot get $from/$1"
        else
            fail "neither curl nor wget is here: install one, or get the files yourself and name their folder"
        fi
        ;;
    *)
        [ -f "$from/$1" ] || fail "$from has no file $1: it should have all files of a release"
        cp "$from/$1" "$work/$1"
        ;;
    esac
}

sum() { sha256sum "$1" | cut -d ' ' -f 1; }

# Gets a file and holds it against SHA256SUMS.
checked() { # NAME
    expected=$(awk -v name="$1" '$2 == name || $2 == "*" name { print $1 }' "$work/SHA256SUMS")
    case $expected in
    '') fail "SHA256SUMS does not name $1: this release is not for this machine, or not whole" ;;
    *[!0-9a-f]*) fail "SHA256SUMS names $1 twice, or not by a SHA-256" ;;
    esac
    [ ${#expected} = 64 ] || fail "SHA256SUMS is cut short, or gives no SHA-256 for $1"
    get "$1"
    found=$(sum "$work/$1")
    [ "$found" = "$expected" ] ||
        fail "$1 is not what SHA256SUMS says: its SHA-256 is $found and should be $expected. Nothing was installed; get it again"
}

# What programs for this machine begin with: ELF, and its number of the machine (e_machine).
fits() { # FILE
    [ "$(head -c 4 "$1" | od -An -tx1 | tr -d ' \n')" = 7f454c46 ] || fail "$(basename "$1") is no program of Linux"
    [ "$(od -An -tx1 -j18 -N2 "$1" | tr -d ' \n')" = "$number" ] || fail "$(basename "$1") is a program for another processor than this, $machine"
}

main() {
    from='' name=skep prefix='' sums='' schemes=https half=
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --edge) name=skep-edge ;;
        --prefix | --sums)
            [ $# -gt 1 ] || wrong "$1 needs a word after it"
            [ "$1" = --sums ] && sums=$2 || prefix=$2
            shift
            ;;
        --allow-http) schemes=http,https ;;
        -*) wrong "there is no $1" ;;
        *)
            [ -z "$from" ] || wrong "one place is enough: $from, or $1"
            from=${1%/}
            ;;
        esac
        shift
    done
    [ -n "$from" ] || wrong "say where the release's files are"
    case $from in
    http://*)
        [ "$schemes" != https ] || fail "$from can be changed by anybody on the way: use https://, or --allow-http with --sums"
        [ -n "$sums" ] || fail "--allow-http goes with --sums only: nothing else would show that the files were changed on the way"
        ;;
    https://*) ;;
    *://*) fail "$from is no address that this takes: https://, or a folder" ;;
    *) [ -d "$from" ] || fail "$from is no folder" ;;
    esac
    case $prefix in
    '')
        [ "$(id -u)" = 0 ] || fail "only root may install for the whole machine: give --prefix \"\$HOME/.local\", or run this with sudo"
        ;;
    /*) ;;
    *) prefix=$PWD/$prefix ;;
    esac

    [ "$(uname -s)" = Linux ] || fail "skep runs on Linux, and this is $(uname -s)"
    machine=$(uname -m)
    case $machine in
    x86_64) number=3e00 ;;
    aarch64) number=b700 ;;
    *) fail "there is no skep for $machine: for x86_64 and aarch64 only" ;;
    esac
    for tool in sha256sum od awk; do
        command -v "$tool" >/dev/null || fail "the command $tool is not here: install coreutils and awk"
    done

    work=$(mktemp -d)
    trap 'rm -rf "$work"; [ -z "$half" ] || rm -f "$half"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' HUP TERM

    get SHA256SUMS
    if [ -n "$sums" ]; then
        found=$(sum "$work/SHA256SUMS")
        [ "$found" = "$(printf %s "$sums" | tr A-F a-f)" ] || fail "the SHA-256 of SHA256SUMS is $found, not $sums: do not trust $from"
    fi
    # All of them before the first is installed.
    program=$name-$machine-linux
    settings=$name.env
    [ "$name" = skep-edge ] || settings="skep.toml skep.env"
    checked "$program"
    checked "$name.service"
    for file in $settings; do checked "$file"; done
    fits "$work/$program"
    chmod 755 "$work/$program"
    version=$("$work/$program" --version) ||
        fail "$program does not run here: look at what it says above; where /tmp may hold no programs, set TMPDIR"

    if [ -n "$prefix" ]; then
        bin=$prefix/bin etc=$prefix/etc/skep unit=$prefix/lib/systemd/system/$name.service
    else
        bin=/usr/local/bin etc=/etc/skep unit=/etc/systemd/system/$name.service
    fi
    if [ -z "$prefix" ]; then
        if ! getent passwd "$name" >/dev/null; then
            useradd --system --user-group --home-dir "/var/lib/$name" --no-create-home --shell /usr/sbin/nologin "$name"
        fi
        [ -d "/var/lib/$name" ] || install -d -m 0700 -o "$name" -g "$name" "/var/lib/$name"
    fi
    # What an operator wrote stays.
    for file in $settings; do
        if [ -e "$etc/$file" ]; then
            say "$etc/$file stays as it is"
        else
            case $file in skep.env) mode=600 ;; *) mode=644 ;; esac
            put "$mode" "$work/$file" "$etc/$file"
            say "$etc/$file"
        fi
    done
    # Only where a path stands in a command or as a file's name: descriptions may say /usr too.
    sed -e "s|^\(ExecStart=\)/usr/bin/|\1$bin/|" -e "s|/etc/skep/|$etc/|" "$work/$name.service" >"$work/unit"
    if cmp -s "$work/unit" "$unit"; then
        say "$unit is there already"
    else
        put 644 "$work/unit" "$unit"
        say "$unit"
    fi
    if cmp -s "$work/$program" "$bin/$name"; then
        say "$bin/$name ($version) is there already"
        new=
    else
        put 755 "$work/$program" "$bin/$name"
        new=yes
        say "$bin/$name ($version)"
    fi

    if [ -n "$prefix" ]; then
        [ "$name" = skep-edge ] || say "try: $bin/skep self check --data ./data; $bin/skep serve --data ./data"
        return
    fi
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        if systemctl --quiet is-active "$name"; then
            [ -z "$new" ] || say "$name runs on with the old program until: systemctl restart $name"
            return
        fi
    fi
    if [ "$name" = skep ]; then
        say "not started. Look at $etc/skep.toml, then:"
        say "  runuser -u skep -- $bin/skep self check --config $etc/skep.toml"
    else
        say "not started. Make this machine an edge (\`skep edge enroll NAME\` at the hub prints a line to paste), then start it:"
        say "  runuser -u skep-edge -- $bin/skep-edge enroll -"
    fi
    say "  systemctl enable --now $name"
}

# In the last line, so that a copy of this file that is cut short does nothing.
main "$@"
