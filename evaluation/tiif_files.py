"""The files of TIIF-Bench's small set, by type: sizes, and git's names of their contents (SHA-1).

They are those of A113N-W3I/TIIF-Bench at 3aae750, in data/testmini_prompts and
data/testmini_eval_prompts.
"""

FILES: dict[str, tuple[tuple[int, str], tuple[int, str]]] = {
    "2d_spatial_relation": (
        (3_425, "afe66a8a4cb010c53799f961a13451e7cbed682e"),
        (1_654, "8fd89066c06bc22f8fa6771f385c7af1dc884683"),
    ),
    "3d_spatial_relation": (
        (3_391, "3cf1da2f3b63d5e676f2e5ef038a4df473ca0f99"),
        (1_645, "bc021d861c244b79c101d20edb99efc475893985"),
    ),
    "action+2d": (
        (3_274, "a13e615fe6950451ff9bec27eb545ab35027af0c"),
        (2_169, "21489317ca7e92ffcd40bb886ea22b51a33454bd"),
    ),
    "action+3d": (
        (3_982, "6272d7ccb0cc371201fcd0351fadda3932c69aec"),
        (2_370, "2af73f9061b093bd96b6c4d901d8ed463d68cdc3"),
    ),
    "action+color": (
        (2_186, "bcfd33a68cd8094e9c2b28d7867f86418a2045f2"),
        (1_449, "c04c9ef4887dc0dad14ba67c4358cfe88559fa0e"),
    ),
    "action+texture": (
        (2_552, "0e2819785babf840af9a169e6705f192765622a8"),
        (1_623, "6d501154282503b8b59931341914acfa674dac93"),
    ),
    "color+2d": (
        (1_851, "f5d27711c9ea9969bf41dc691a9a7444aa1664b5"),
        (1_015, "6307f6000ff5f52d9976894a270e6c33240883c1"),
    ),
    "color+3d": (
        (2_006, "2f3bd3e5d5d6176e4a0198e2f2475e878b4c19a5"),
        (1_003, "fbf62459f6884e1f732022d12378518118a71461"),
    ),
    "color+texture": (
        (2_510, "c0341fc17037009581e4cbe287e87620157acc95"),
        (1_298, "5a27a9361e9c2df2ac400fc29071d213e639e4d1"),
    ),
    "comparison": (
        (4_029, "1f2f58accd92f79e0b470ed8c5a8ee362777b012"),
        (2_017, "59f3415f61270dcb2847f79e1a020ee62f7f5ddd"),
    ),
    "comparison+2d": (
        (1_779, "11c0be1769333eb66d8076b927f6849279ac2f67"),
        (1_300, "ed7c3481e2d5ee66991c4c9a6e4e45f0d753e5f4"),
    ),
    "comparison+3d": (
        (1_950, "f69a85d8972b11c4c6807222a81f09d5ca1f1648"),
        (1_463, "5eaf5c1ba6befc4468ae44cc38337aa645c3bd35"),
    ),
    "comparison+color": (
        (1_860, "79b22b6851cd0cee21de77bec0588277d1f3efeb"),
        (1_546, "7aa75e90286a0b3441460a8b2b6c11e06970ee05"),
    ),
    "comparison+texture": (
        (2_097, "c020acf0340afc07c8fe262a8eb4dea4f4c20400"),
        (1_602, "1973e5ce6f13a1c5394b38ef3002047660b604aa"),
    ),
    "differentiation": (
        (4_343, "b75ff827534a509607fcc1911f37278b2bcc2024"),
        (2_693, "5a38c67050062b51cabec3b0f2ddf61ab870a1be"),
    ),
    "differentiation+2d": (
        (2_270, "d7301290dd437f5984634f7539e317fbbc476428"),
        (1_555, "19c80b64f7d6ea32b902305840b0026df61a1789"),
    ),
    "differentiation+3d": (
        (2_455, "99c6df4d5b60669f69a01d4dc5ad9d22bf77085a"),
        (1_802, "4cf36915c21bebdcaa975ea5d7e6001740eae7c3"),
    ),
    "differentiation+color": (
        (2_051, "a508fbfb6b7911703d5531d17daabd12e40e59b1"),
        (1_793, "771503e569121cd09e4a31ccbceb42fb1b227180"),
    ),
    "differentiation+texture": (
        (2_676, "1779486d341c72cad214e19ce04f99e1d782cb64"),
        (1_904, "8c99e3cf84bd914552c02d7b1b2343372f1cc251"),
    ),
    "negation": (
        (4_283, "52bb98ece9b9bb5b442a165e48adcec3f4af922b"),
        (1_570, "205b99a12a9e9721205ba91559ede48ef77cddbd"),
    ),
    "negation+2d": (
        (1_775, "f68427b81fa3aff0cd2e462dbc4e80529bb16660"),
        (1_028, "324f0a5faa36df9350d94c92b611455a46e3dfc9"),
    ),
    "negation+3d": (
        (2_083, "1060dcd994192823f6ec2b9ec8de3bd21e50fd83"),
        (1_105, "14a24b4e0c3f3b14dc03d901075fa8af335857eb"),
    ),
    "negation+color": (
        (1_945, "d8ea4389e96a8ec882a9e38398c573a23a2a84a4"),
        (1_057, "c52953c2e3705280a6bc44eaaa15d41df3c6b4e7"),
    ),
    "negation+texture": (
        (2_229, "77b915c55df46515258bcaf293ec0ea89a559912"),
        (1_180, "e18aed5dee3fab065f80b8cc66bd96eb2cd72c3f"),
    ),
    "numeracy": (
        (4_850, "6e9faf1463186d282a727f1e2b599258eecea90e"),
        (2_483, "bf3eac4f413fb3675b33633995fe1c4bf38b218f"),
    ),
    "numeracy+2d": (
        (2_122, "b2ebfd205f9f6d46d7dde2408eff296c0375c0de"),
        (1_439, "200f2ecf8a9ad73fb7f74495b38f5d032582d65f"),
    ),
    "numeracy+3d": (
        (2_949, "c6bd10b3ac5bae6fcadbb7df5736cd9d46c093c3"),
        (1_629, "fe169ac9f9d33ab05bd1a16cbc1486d333e67c72"),
    ),
    "numeracy+color": (
        (2_739, "c43fdcafd6c407be29ac278da8e4cc8e42fb747a"),
        (1_940, "f10936a737a7967db909ba513e5fcdadde9fb131"),
    ),
    "numeracy+texture": (
        (3_406, "50ba2579fdd8d63eaf4828cacde5086cd91f8e71"),
        (2_087, "31d8d52d32eae4ed0a2d7a8e0015c67850bc3af1"),
    ),
    "real_world": (
        (40_104, "c013e47972b90eb444a9d5d9a6dceaf7ddb8d0e8"),
        (29_331, "6d8d51f0065b8b2db0d55dd7cd6484c64f8dc0e2"),
    ),
    "shape+2d": (
        (1_972, "b9f7fdeaed57a7e35530027011fd6098c1c9f43b"),
        (1_192, "2915b2a7fa41ba4f8d93647b6abe3309eee8d540"),
    ),
    "shape+3d": (
        (1_895, "a350afa5e15e7d4bb01c1c23e53f22a985542f76"),
        (1_195, "aff10c6d1f6f12c40fc8e7418572773bc9e3a644"),
    ),
    "shape+color": (
        (5_765, "b0a6ed408a33b601f0c8440beba23c500423ab8a"),
        (2_802, "9256213f727473c82f40e490bc4fc792ea4d7ce6"),
    ),
    "shape+texture": (
        (5_267, "338942d1531c50e07e694c190d11970eee2b711f"),
        (2_939, "5a765e0c6b5949d7f807cd55bb666ea0f0dd9407"),
    ),
    "style": (
        (31_169, "2968aa357f09d4b84d838717fc150a5a624369a9"),
        (3_057, "90d3b32b4a6ba1e371acb18edebe6ada205c6675"),
    ),
    "text": (
        (48_441, "df710436cccc910b44a4fbc2f3bfb3f6e5adf9be"),
        (11_752, "c91c1ad994d2867e48c9d05882c8389f8a4f0548"),
    ),
    "texture+2d": (
        (1_860, "8aa16dba5d9b5dd321acfb715d9acbd2f674b3bf"),
        (1_217, "96bce4f146bd13b7be89b74cef113c8de12e8b95"),
    ),
    "texture+3d": (
        (2_072, "190300724bd6deedc520f54d821545139da35a2f"),
        (1_023, "e13ef673e3fa2be70185f4a661b98bbfeac9bb74"),
    ),
    "texture+color": (
        (2_808, "df8ed3840a412809ac4e8e0dee4147a41418aa41"),
        (1_322, "82a5cd3def7ab12fffb6166ff0525481c76901e8"),
    ),
}
"""Type -> (prompts, questions)."""
