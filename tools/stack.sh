# shellcheck shell=bash
# The state of one stack in the folder $DIR: ports, processes, certificates and its env file.

PORTS=/tmp/mail-token-broker-ports # port -> the stack that has it

random_secret() { openssl rand -hex 16; }

# Prints the port of a name in this stack. The port is chosen once, below the kernel's range for outgoing connections. A link
# that only one stack can create reserves it.
port() { # NAME
    local file=$DIR/run/$1.port port
    if [[ ! -f $file ]]; then
        [[ -d $PORTS ]] || mkdir -m 1777 "$PORTS" 2>/dev/null || true
        while :; do
            port=$((20000 + RANDOM % 12000))
            [[ -e $PORTS/$port ]] || rm -f "$PORTS/$port" # its stack is gone
            ln -s "$DIR/run" "$PORTS/$port" 2>/dev/null || continue
            listening "$port" || break
            rm -f "$PORTS/$port"
        done
        printf '%s\n' "$port" >"$file"
    fi
    cat "$file"
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; } # PORT

release_ports() {
    local file
    for file in "$DIR"/run/*.port; do
        [[ -f $file ]] || continue
        rm -f "$PORTS/$(<"$file")" "$file"
    done
}

# Starts a process that outlives this script and inherits none of its open files.
launch() { # NAME COMMAND...
    local name=$1; shift
    launching=yes # until its number is written, `broken_off` waits
    setsid nohup "$@" </dev/null >>"$DIR/logs/$name.log" 2>&1 {STACK_LOCK}>&- &
    start_time $! >"$DIR/run/$name.started" || true # it may have ended already
    printf '%s\n' $! >"$DIR/run/$name.pid"
    launching=
    if [[ ${signalled-} ]]; then exit 1; fi
}

# Ends the script at a signal, but not between the start of a process and its record.
broken_off() {
    signalled=yes
    [[ ${launching-} ]] || exit 1
}

# Prints a process's start time in ticks since boot; returns 1 if the process has ended.
start_time() { # PID
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return
    read -ra stat <<<"${stat##*) }" # what follows the name of the command: the state and, 19 fields on, the time
    [[ ${stat[0]} != [ZX] ]] && printf '%s\n' "${stat[19]}"
}

# Whether the launched process still runs, not another process that reuses its id.
alive() { # NAME
    local pid started
    pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) && started=$(start_time "$pid") &&
        [[ $started == "$(<"$DIR/run/$1.started")" ]]
}

# Stops a process and its process group: SIGTERM, then SIGKILL after 8 s.
halt() { # NAME
    local name=$1 pid deadline=$((SECONDS + 8))
    pid=$(cat "$DIR/run/$name.pid" 2>/dev/null) || return 0
    if alive "$name"; then kill -TERM "$pid" 2>/dev/null || true; fi
    while alive "$name"; do
        if ((SECONDS >= deadline)); then
            say "$name does not stop: killing it"
            break
        fi
        sleep 0.05
    done
    # While the group has members, the kernel does not reuse its id, so a living process with this id is the launched one.
    if alive "$name" || ! start_time "$pid" >/dev/null; then kill -KILL -- "-$pid" 2>/dev/null || true; fi
    while alive "$name"; do sleep 0.05; done
    rm -f "$DIR/run/$name".{pid,started}
}

# Waits until the component is ready. The processes that it needs must stay alive meanwhile.
await() { # COMPONENT SECONDS PROCESS...
    local component=$1 deadline=$((SECONDS + $2)) process; shift 2
    until call ready "$component" 2>/dev/null; do
        for process; do
            alive "$process" || fail "$component: $process ended" "$process"
        done
        ((SECONDS < deadline)) || fail "$component: not ready in time" "$@"
        sleep 0.1
    done
}

# Prints the failure and the end of each log. The trap of tools/stack then stops the started processes.
fail() { # MESSAGE PROCESS...
    local process
    say "$1"; shift
    for process; do
        say "the last lines of logs/$process.log:"
        tail -n 30 "$DIR/logs/$process.log" >&2 || true
    done
    exit 1
}

# Adds variables to DIR/env: one file for each component, concatenated in one step.
put_env() { # COMPONENT NAME=VALUE...
    local component=$1 pair value; shift
    for pair; do
        value=${pair#*=}
        printf "export %s='%s'\n" "${pair%%=*}" "${value//\'/\'\\\'\'}"
    done >"$DIR/run/$component.env"
    write_env
}

write_env() {
    cat "$DIR"/run/*.env >"$DIR/env.tmp" 2>/dev/null || true
    chmod 600 "$DIR/env.tmp"
    mv "$DIR/env.tmp" "$DIR/env"
}

# The private CA of the stack, and the keys and certificates that it signs, in DIR/pki, created once.
ensure_ca() {
    [[ -f $DIR/pki/ca.crt ]] && return
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj '/CN=mail-token-broker stack' \
        -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout "$DIR/pki/ca.key" -out "$DIR/pki/ca.crt" 2>/dev/null
}

issue() { # NAME SUBJECT serverAuth|clientAuth [SUBJECT-ALTERNATIVE-NAME,...]
    local file=$DIR/pki/$1
    [[ -f $file.crt ]] && return
    ensure_ca
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$file.key" 2>/dev/null |
        openssl x509 -req -days 365 -CA "$DIR/pki/ca.crt" -CAkey "$DIR/pki/ca.key" -out "$file.crt" -extfile <(
            printf 'extendedKeyUsage=%s\n' "$3"
            [[ -z ${4-} ]] || printf 'subjectAltName=%s\n' "$4"
        ) 2>/dev/null
}

# The name by which the clients of the stack's servers reach this machine. The pods of tools/node have another than localhost.
STACK_HOST=${MTB_STACK_HOST:-localhost}

issue_localhost() { issue localhost /CN=localhost serverAuth "DNS:localhost,IP:127.0.0.1,DNS:$STACK_HOST"; }

# Links the commands for users and tests in DIR/bin, which DIR/env names.
put_tools() {
    local tool path pairs=()
    mkdir -p "$DIR/bin"
    for tool in kubectl helm kubeconform; do
        path=$(tool_path "$tool") || continue
        ln -sf "$path" "$DIR/bin/$tool"
        pairs+=("${tool^^}=$path")
    done
    ensure_ca
    put_env tools "TOOLS_BIN=$DIR/bin" "CA_CERT=$DIR/pki/ca.crt" "${pairs[@]}"
}
