// Guests of a few instructions: 64-bit code that runs wherever it is loaded, entered as the Linux boot protocol says
// (rsi = boot_params, memory below 4 GiB mapped one to one). The word at small_which selects one.
//
// Throughout, r15 = boot_params and r14 = a page-aligned scratch area behind the code. Routines keep r12 to r15.

    .pushsection .rodata.small_guests, "a"
    .globl small_begin, small_which, small_end
    .globl small_prints, small_absent, small_no_serial, small_power_off, small_reset, small_triple_fault
    .globl small_unsupported, small_halts, small_e820, small_boot_params, small_functions, small_entropy
    .globl small_console, small_bitten, small_panics, small_register, small_timer
    .globl small_place, small_word

small_begin:
    lea   rax, [rip + small_end]
    lea   rsp, [rax + 0x8000]
    and   rsp, -16
    lea   r14, [rax + 0x9fff]
    and   r14, -0x1000
    mov   r15, rsi
    lea   rcx, [rip + small_begin]
    mov   eax, [rip + small_which]
    add   rax, rcx
    jmp   rax
    .balign 4
small_which:
    .long 0

// ---- Routines.

// Prints the character in al.
putc:
    mov   dx, 0x3f8
    out   dx, al
    ret

// Prints the string at rsi, which ends in a zero.
puts:
    lodsb
    test  al, al
    jz    1f
    call  putc
    jmp   puts
1:  ret

// Prints the ecx low digits of rax in hexadecimal and a space.
puthex:
    mov   r8, rax
    shl   ecx, 2
1:  sub   ecx, 4
    mov   rax, r8
    shr   rax, cl
    and   eax, 15
    lea   rdx, [rip + digits]
    mov   al, [rdx + rax]
    call  putc
    test  ecx, ecx
    jnz   1b
    mov   al, ' '
    jmp   putc
digits:
    .ascii "0123456789abcdef"

newline:
    mov   al, '\n'
    jmp   putc

// Finds the ACPI table whose signature is in eax: its address in rbx.
find_table:
    mov   rbx, [r15 + 0x70]         // boot_params.acpi_rsdp_addr
    mov   rsi, [rbx + 24]           // the XSDT
    mov   ecx, [rsi + 4]            // its length
    sub   ecx, 36
    shr   ecx, 3
    add   rsi, 36
1:  mov   rbx, [rsi]
    cmp   eax, [rbx]
    je    2f
    add   rsi, 8
    loop  1b
    ud2
2:  ret

// Sleep type 5 and sleep enable to the FADT's sleep control register, which is a port.
power_off:
    mov   eax, 0x50434146           // "FACP"
    call  find_table
    mov   dx, [rbx + 244 + 4]
    mov   al, 0x34
    out   dx, al
    hlt

// Finds the PCI function on bus 0 whose identity is in eax: its configuration space in rbx.
find_function:
    push  rax
    mov   eax, 0x4746434d           // "MCFG"
    call  find_table
    mov   rbx, [rbx + 44]
    pop   rax
    mov   ecx, 32
1:  cmp   eax, [rbx]
    je    2f
    add   rbx, 0x8000
    loop  1b
    ud2
2:  ret

// Makes a virtio device ready, identity in eax, with its queue cx in r14: the common configuration in r13, the queue's
// doorbell in r12. Descriptors, available and used ring have a page each.
virtio_open:
    push  rcx
    call  find_function
    mov   word ptr [rbx + 4], 6     // memory, bus master
    movzx esi, byte ptr [rbx + 0x34]
1:  test  esi, esi
    jz    4f
    cmp   byte ptr [rbx + rsi], 9   // a vendor's capability
    jne   3f
    movzx eax, byte ptr [rbx + rsi + 4]
    mov   edi, [rbx + rax * 4 + 0x10]
    and   edi, -16
    add   edi, [rbx + rsi + 8]
    cmp   byte ptr [rbx + rsi + 3], 1
    jne   2f
    mov   r13, rdi
2:  cmp   byte ptr [rbx + rsi + 3], 2
    jne   3f
    mov   r12, rdi
    mov   r11d, [rbx + rsi + 16]    // the doorbells' distance
3:  movzx esi, byte ptr [rbx + rsi + 1]
    jmp   1b
4:  mov   byte ptr [r13 + 20], 0    // reset
5:  cmp   byte ptr [r13 + 20], 0
    jne   5b
    mov   byte ptr [r13 + 20], 1
    mov   byte ptr [r13 + 20], 3
    mov   dword ptr [r13 + 8], 1
    mov   dword ptr [r13 + 12], 1   // VERSION_1
    mov   dword ptr [r13 + 8], 0
    mov   dword ptr [r13 + 12], 0
    mov   byte ptr [r13 + 20], 11
    test  byte ptr [r13 + 20], 8    // FEATURES_OK
    jnz   6f
    ud2
6:  pop   rcx
    mov   [r13 + 22], cx
    mov   word ptr [r13 + 24], 8
    mov   [r13 + 32], r14d
    mov   dword ptr [r13 + 36], 0
    lea   rax, [r14 + 0x1000]
    mov   [r13 + 40], eax
    mov   dword ptr [r13 + 44], 0
    lea   rax, [r14 + 0x2000]
    mov   [r13 + 48], eax
    mov   dword ptr [r13 + 52], 0
    mov   word ptr [r13 + 28], 1
    movzx eax, word ptr [r13 + 30]
    imul  eax, r11d
    add   r12, rax
    mov   byte ptr [r13 + 20], 15   // DRIVER_OK
    mov   r11d, ecx
    ret

// Hands over the buffer at rdi of esi bytes with the descriptor flags dx, and waits until it is used: the length that
// the device wrote in eax.
virtio_do:
    mov   [r14], rdi
    mov   [r14 + 8], esi
    mov   [r14 + 12], dx
    movzx eax, word ptr [r14 + 0x1002]
    mov   ecx, eax
    and   ecx, 7
    mov   word ptr [r14 + 0x1004 + rcx * 2], 0
    inc   eax
    mfence
    mov   [r14 + 0x1002], ax
    mfence
    mov   [r12], r11w
1:  pause
    cmp   ax, [r14 + 0x2002]
    jne   1b
    mov   eax, [r14 + 0x2008 + rcx * 8]
    ret

// ---- The guests.

// One character at a time and a string at once.
small_prints:
    lea   rsi, [rip + hello]
    call  puts
    lea   rsi, [rip + string]
    mov   ecx, 18
    mov   dx, 0x3f8
    rep   outsb
    jmp   power_off
hello:
    .asciz "out: hello, serial port\n"
string:
    .ascii "outs: hello again\n"

// Reads what is not there: a port in three widths, memory in the PCI window.
small_absent:
    mov   dx, 0x1234
    xor   eax, eax
    in    al, dx
    mov   ecx, 2
    call  puthex
    mov   dx, 0x1234
    xor   eax, eax
    in    ax, dx
    mov   ecx, 4
    call  puthex
    mov   dx, 0x1234
    in    eax, dx
    mov   ecx, 8
    call  puthex
    mov   eax, 0xe0000000
    mov   rax, [rax]
    mov   ecx, 16
    call  puthex
    call  newline
    jmp   power_off

// Powers off if the line status of the absent first serial port says that it is idle.
small_no_serial:
    mov   dx, 0x3fd
    in    al, dx
    cmp   al, 0x60
    je    power_off
    jmp   small_triple_fault

small_power_off:
    jmp   power_off

small_reset:
    mov   eax, 0x50434146           // "FACP"
    call  find_table
    mov   dx, [rbx + 116 + 4]
    mov   al, [rbx + 128]
    out   dx, al
    hlt

// An exception without an interrupt table.
small_triple_fault:
    push  0
    push  0
    lidt  [rsp]
    ud2

// Fetches instructions from where no memory is.
small_unsupported:
    mov   eax, 0xe0000000
    jmp   rax

// Starts the watchdog with no time left, and waits to be bitten.
small_bitten:
    mov   dx, 0x443
    mov   al, 15
    out   dx, al
1:  hlt
    jmp   1b

// Tells pvpanic that it panics.
small_panics:
    mov   dx, 0x505
    mov   al, 1
    out   dx, al
1:  hlt
    jmp   1b

// Reads a model-specific register that no processor has, prints it and powers off.
small_register:
    mov   ecx, 0xdead
    rdmsr
    shl   rdx, 32
    or    rax, rdx
    mov   ecx, 16
    call  puthex
    jmp   small_power_off

// Lets the interval timer's channel 2 count down from 0xffff, waits until its output rises, and powers off.
small_timer:
    mov   dx, 0x61
    in    al, dx
    and   al, 0xfc
    or    al, 1
    out   dx, al
    mov   al, 0xb0
    out   0x43, al
    mov   al, 0xff
    out   0x42, al
    out   0x42, al
1:  in    al, dx
    test  al, 0x20
    jz    1b
    jmp   small_power_off

// Says so and waits for nothing.
small_halts:
    lea   rsi, [rip + halting]
    call  puts
1:  hlt
    jmp   1b
halting:
    .asciz "halting\n"

// The memory map: address, size and type of each range.
small_place:
    lea   rax, [rip + small_begin]
    mov   ecx, 16
    call  puthex
    mov   rax, [rip + small_word]
    mov   ecx, 16
    call  puthex
    call  newline
    jmp   power_off
    .balign 8
small_word:
    .quad 0

small_e820:
    movzx r12d, byte ptr [r15 + 0x1e8]
    lea   r13, [r15 + 0x2d0]
1:  test  r12d, r12d
    jz    power_off
    mov   rax, [r13]
    mov   ecx, 16
    call  puthex
    mov   rax, [r13 + 8]
    mov   ecx, 16
    call  puthex
    mov   eax, [r13 + 16]
    mov   ecx, 1
    call  puthex
    call  newline
    add   r13, 20
    dec   r12d
    jmp   1b

// The command line, the ramdisk's address and text, and the length of the random seed, a line each.
small_boot_params:
    mov   esi, [r15 + 0x228]
    call  puts
    call  newline
    mov   eax, [r15 + 0x218]
    mov   ecx, 8
    call  puthex
    mov   r12d, [r15 + 0x218]
    mov   r13d, [r15 + 0x21c]
1:  mov   al, [r12]
    call  putc
    inc   r12
    dec   r13d
    jnz   1b
    call  newline
    lea   r12, [r15 + 0x250]        // the first setup_data
2:  mov   r12, [r12]
    test  r12, r12
    jz    power_off
    cmp   dword ptr [r12 + 8], 9    // SETUP_RNG_SEED
    jne   2b
    mov   eax, [r12 + 12]
    mov   ecx, 4
    call  puthex
    call  newline
    jmp   2b

// The device number and the identity of each PCI function 0.
small_functions:
    mov   eax, 0x4746434d           // "MCFG"
    call  find_table
    mov   r12, [rbx + 44]
    xor   r13d, r13d
1:  mov   ebx, [r12]
    cmp   ebx, -1
    je    2f
    mov   eax, r13d
    mov   ecx, 2
    call  puthex
    mov   eax, ebx
    mov   ecx, 8
    call  puthex
    call  newline
2:  add   r12, 0x8000
    inc   r13d
    cmp   r13d, 32
    jne   1b
    jmp   power_off

// Asks for 32 random bytes three times and prints the length of each answer and its bytes.
small_entropy:
    mov   eax, 0x10441af4
    xor   ecx, ecx
    call  virtio_open
    mov   ebp, 3
1:  lea   rdi, [r14 + 0x3000]
    mov   esi, 32
    mov   edx, 2                    // for the device to write
    call  virtio_do
    mov   ecx, 2
    call  puthex
    mov   rax, [r14 + 0x3000]
    mov   ecx, 16
    call  puthex
    mov   rax, [r14 + 0x3008]
    mov   ecx, 16
    call  puthex
    mov   rax, [r14 + 0x3010]
    mov   ecx, 16
    call  puthex
    mov   rax, [r14 + 0x3018]
    mov   ecx, 16
    call  puthex
    call  newline
    dec   ebp
    jnz   1b
    jmp   power_off

// Prints through the transmit queue of the console.
small_console:
    mov   eax, 0x10431af4
    mov   ecx, 1
    call  virtio_open
    lea   rdi, [rip + console]
    mov   esi, 15
    xor   edx, edx
    call  virtio_do
    jmp   power_off
console:
    .ascii "hello, console\n"

    .balign 16
small_end:
    .popsection
