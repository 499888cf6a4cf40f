# Makes the manual page and the completions from the help texts of deferd and of its client, which are the only table
# of the options: awk -v form=man|bash|zsh|fish [-v version=VERSION] -f from-help.awk src/config/help.txt
# src/client/help.txt
#
# The help has its options at column 3 and their meaning at column 27 (the client: 22), defaults in brackets at the
# end, continued lines indented. A lower-case word after an option is one of its values.

FNR == 1 { file += 1; column = file == 1 ? 27 : 22; last = 0; scope = file == 1 ? "serve" : "client" }

# A command: `deferd WORD OPERANDS  what it does`.
/^(Usage:|      ) deferd [a-z]+/ && !/\|/ {
    line = substr($0, 8)
    gap = match(line, /  +/)
    n = ++commands
    synopsis[n] = substr(line, 1, gap - 1)
    split(synopsis[n], word, " ")
    command[n] = word[2]
    meaning[n] = substr(line, gap + RLENGTH)
    next
}
/^Usage: deferd / { serve = substr($0, 8) }

/^Options of submit and run/ { scope = "submit run" }
/^Options of (the others|all)/ { scope = $3 == "all" ? "client" : "others" }

# An option and its lines; two options may share them, such as `--store URL, --lease T`.
/^  -/ {
    head = substr($0, 3, column - 3)
    sub(/ +$/, "", head)
    first = options + 1
    total = split(head, part, ", ")
    for (m = 1; m <= total; m++) {
        n = ++options
        split(part[m], word, " ")
        of[n] = scope
        name[n] = word[1]
        value[n] = substr(part[m], length(word[1]) + 2)
        text[n] = substr($0, column)
    }
    last = options
    next
}
/^    / && last {
    line = $0
    sub(/^ +\(several times\)/, "", line)
    sub(/^ +/, "", line)
    for (n = first; n <= last; n++) {
        text[n] = text[n] " " line
        if ($0 ~ /^ +\(several times\)/) several[n] = 1
    }
    next
}
/^$/ { last = 0 }

/^Targets/ { in_routes = 1 }
in_routes && /^$/ { in_routes = 0 }
in_routes { routes = routes $0 "\n" }
/^Durations/ { durations = $0 }
file == 1 && /^  (curl|http)/ { examples = examples substr($0, 3) "\n" }
file == 2 && /^run behaves/ { in_run = 1 }
/^Exit codes:/ { in_run = 0; in_codes = 1; sub(/^Exit codes: /, "") }
in_run { run = run $0 "\n" }
in_codes { codes = codes $0 "\n" }

END {
    for (n = 1; n <= options; n++) {
        gsub(/  +/, " ", text[n])
        if (match(text[n], / *\[[^][]*\]$/)) {
            preset[n] = substr(text[n], RSTART)
            gsub(/^ *\[|\]$/, "", preset[n])
            text[n] = substr(text[n], 1, RSTART - 1)
        }
        # For one command of the client: `wait: give up ...`.
        if (of[n] == "others") {
            split(text[n], word, ":")
            of[n] = word[1]
            text[n] = substr(text[n], length(word[1]) + 3)
        }
        choices[n] = choices_of(n)
    }
    if (form == "man") man()
    else if (form == "bash") bash()
    else if (form == "zsh") zsh()
    else if (form == "fish") fish()
    else exit 2
}

# Returns the values of an option, separated by blanks, if the help names them all.
function choices_of(n,   words, rest) {
    if (value[n] == "LEVEL") {
        words = text[n]
        gsub(/,/, "", words)
        return words
    }
    if (value[n] == "STATE") return "waiting delayed running done pending"
    if (value[n] ~ /^[a-z_]+$/ && match(text[n], /^or [a-z_]+:/))
        return value[n] " " substr(text[n], 4, RLENGTH - 4)
    return ""
}

function is_path(n) { return value[n] ~ /^(FILE|DIR)$/ }

# --- The manual page -------------------------------------------------------------------------------------------------

function roff(s) {
    gsub(/\\/, "\\e", s)
    gsub(/-/, "\\-", s)
    gsub(/'/, "\\(aq", s)
    gsub(/`/, "\\(ga", s)
    gsub(/\^/, "\\(ha", s)
    gsub(/~/, "\\(ti", s)
    if (s ~ /^\./) s = "\\&" s
    return s
}

function section(title) { print ".SH " title }

function verbatim(s) {
    sub(/\n$/, "", s)
    print ".nf"
    print roff(s)
    print ".fi"
}

function paragraph(s) { sub(/\n$/, "", s); print ".PP"; print roff(s) }

function item(term, s) { print ".TP"; print ".B " roff(term); print roff(s) }

function man_option(n,   s) {
    s = text[n]
    if (choices[n] != "" && value[n] !~ /^[A-Z]/) {
        value[n] = choices[n]
        gsub(/ /, "|", value[n])
    }
    if (several[n]) s = s "; may be given several times"
    if (preset[n] != "") s = s " [" preset[n] "]"
    item(name[n] (value[n] == "" ? "" : " " value[n]), s)
}

function man(   n) {
    print ".\\\" Made from the help texts by scripts/packaging/from-help.awk."
    print ".TH DEFERD 1 \"\" \"deferd " version "\" \"User Commands\""
    section("NAME")
    print "deferd \\- run slow HTTP requests in the background"
    section("SYNOPSIS")
    print ".nf"
    print roff(serve)
    for (n = 1; n <= commands; n++) print roff(synopsis[n])
    print ".fi"
    section("DESCRIPTION")
    print roff("A client adds the field `x-arango-async: store` to a request, gets 202 and an id at once, and fetches the")
    print roff("complete response later. deferd runs CGI scripts and plain programs, calls other HTTP services, and keeps each")
    print roff("result until it is collected, deleted or expired.")
    for (n = 1; n <= commands; n++) if (command[n] == "token") item(synopsis[n], meaning[n])
    section("OPTIONS")
    for (n = 1; n <= options; n++) if (of[n] == "serve") man_option(n)
    paragraph(durations)
    section("ROUTES")
    verbatim(routes)
    section("CLIENT")
    print roff("These commands ask a deferd that is already running.")
    for (n = 1; n <= commands; n++) if (command[n] != "token") item(synopsis[n], meaning[n])
    for (n = 1; n <= options; n++) if (of[n] != "serve") {
        sub(/ /, ", ", of[n])
        text[n] = (of[n] == "client" ? "" : "(" of[n] ") ") text[n]
        man_option(n)
    }
    paragraph(run)
    section("EXIT STATUS")
    print roff("Of the daemon: 0 after SIGTERM or SIGINT, 1 for a failure at run time, 2 for an invalid configuration.")
    paragraph("Of the client: " codes)
    section("SIGNALS")
    item("SIGTERM, SIGINT", "end: no new jobs, running ones have --grace; a second signal ends deferd at once")
    item("SIGHUP", "read again the users, secrets and env-files; options are read only at start")
    section("EXAMPLES")
    verbatim(examples)
    section("SEE ALSO")
    print roff("deferd-job(1), a client that needs only a shell and wget; REFERENCE.md for each option, request and field.")
}

# --- Completions -----------------------------------------------------------------------------------------------------

function long_names(which,   n, s) {
    for (n = 1; n <= options; n++)
        if (index(" " of[n] " ", " " which " ") || (which != "serve" && of[n] == "client"))
            s = s (s == "" ? "" : " ") name[n]
    return s
}

function bash(   n, words, with_value) {
    print "# bash completion for deferd, made from its help texts.                                  -*- shell-script -*-"
    print "_deferd() {"
    print "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words"
    print "    case $prev in"
    for (n = 1; n <= options; n++) {
        if (choices[n] != "")
            printf "        %s) COMPREPLY=($(compgen -W \"%s\" -- \"$cur\")); return ;;\n", name[n], choices[n]
        else if (is_path(n))
            printf "        %s) compopt -o filenames; COMPREPLY=($(compgen -%s -- \"$cur\")); return ;;\n", name[n],
                value[n] == "DIR" ? "d" : "f"
        else if (value[n] != "") with_value = with_value (with_value == "" ? "" : "|") name[n]
    }
    printf "        %s) return ;;\n", with_value
    print "    esac"
    print "    case ${COMP_WORDS[1]} in"
    for (n = 1; n <= commands; n++) {
        if (command[n] != "token") printf "        %s) words=\"%s\" ;;\n", command[n], long_names(command[n])
        words = words command[n] " "
    }
    print "        token) words= ;;"
    printf "        *) words=\"%s\"; [ \"$COMP_CWORD\" -gt 1 ] || words=\"%s$words\" ;;\n", long_names("serve"), words
    print "    esac"
    print "    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))"
    print "}"
    print "complete -F _deferd deferd"
}

function quoted(s) { gsub(/'/, "'\\''", s); return "'" s "'" }

function zsh_specs(which,   n, spec, s, action) {
    for (n = 1; n <= options; n++) {
        if (!index(" " of[n] " ", " " which " ") && !(which != "serve" && of[n] == "client")) continue
        s = text[n]
        gsub(/[:\[\]]/, "\\\\&", s)
        if (choices[n] != "") action = ":value:(" choices[n] ")"
        else if (is_path(n)) action = ":" tolower(value[n]) ":_files" (value[n] == "DIR" ? " -/" : "")
        else action = value[n] == "" ? "" : ":value: "
        spec = (several[n] || text[n] ~ /repeated/ ? "*" : "") name[n] "[" s "]" action
        printf " \\\n            %s", quoted(spec)
    }
    printf "\n"
}

function zsh(   n) {
    print "#compdef deferd"
    print "# Made from the help texts of deferd."
    print "local -a commands"
    print "commands=("
    for (n = 1; n <= commands; n++) printf "    %s\n", quoted(command[n] ":" meaning[n])
    print ")"
    print "case ${words[2]} in"
    for (n = 1; n <= commands; n++) if (command[n] != "token") {
        printf "    %s)\n        shift words; (( CURRENT -= 1 ))\n        _arguments", command[n]
        zsh_specs(command[n])
        print "        ;;"
    }
    print "    token) ;;"
    print "    *)"
    print "        (( CURRENT > 2 )) || _describe command commands"
    printf "        _arguments"
    zsh_specs("serve")
    print "        ;;"
    print "esac"
}

function fish(   n, flag, condition, all) {
    print "# fish completion for deferd, made from its help texts."
    for (n = 1; n <= commands; n++) all = all " " command[n]
    print "complete -c deferd -f"
    for (n = 1; n <= commands; n++)
        printf "complete -c deferd -n __fish_use_subcommand -a %s -d %s\n", command[n], quoted(meaning[n])
    for (n = 1; n <= options; n++) {
        if (of[n] == "serve") condition = "not __fish_seen_subcommand_from" all
        else if (of[n] == "client") condition = "__fish_seen_subcommand_from" all
        else condition = "__fish_seen_subcommand_from " of[n]
        flag = name[n] ~ /^--/ ? "-l " substr(name[n], 3) : "-s " substr(name[n], 2)
        printf "complete -c deferd -n %s %s%s -d %s\n", quoted(condition), flag,
            choices[n] != "" ? " -x -a " quoted(choices[n]) : is_path(n) ? " -r -F" : value[n] == "" ? "" : " -x",
            quoted(text[n])
    }
}
